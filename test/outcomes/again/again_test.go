// Package again has a test that fails in its first run only, and one that fails without -short only.
package again

import "testing"

var runs int

func TestFirstRunFails(t *testing.T) {
	if runs++; runs == 1 && testing.Short() {
		t.Error("the reason of the first run")
	}
}

func TestNeedsShort(t *testing.T) {
	if !testing.Short() {
		t.Error("the reason without -short")
	}
}
