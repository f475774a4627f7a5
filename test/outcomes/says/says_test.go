// Package says prints the JSON of an event, and nothing at the start of a line that go test prints.
package says

import (
	"fmt"
	"os"
	"testing"
)

func TestSays(t *testing.T) {
	for _, file := range []*os.File{os.Stdout, os.Stderr} {
		fmt.Fprintln(file, `{"Action":"fail","Package":"example.com/outcomes/says","Test":"TestSays"}`)
	}
	t.Log("--- FAIL: TestOther (0.00s)")
}
