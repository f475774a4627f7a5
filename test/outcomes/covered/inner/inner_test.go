package inner

import (
	"testing"

	"example.com/outcomes/covered"
)

func TestInner(t *testing.T) {
	if covered.Answer() == 42 {
		t.Error("found by running all packages only")
	}
}
