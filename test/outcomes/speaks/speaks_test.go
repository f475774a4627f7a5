// Package speaks prints what go test prints.
package speaks

import (
	"fmt"
	"testing"
)

func TestSpeaks(t *testing.T) {
	fmt.Println("--- FAIL: TestOther (0.00s)")
	fmt.Println(`{"Action":"fail","Package":"example.com/outcomes/speaks","Test":"TestSpeaks"}`)
}
