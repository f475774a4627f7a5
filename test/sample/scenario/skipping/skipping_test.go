//go:build scenario

// Package skipping has tests that are skipped, with a reason, without one, and in a subtest.
package skipping

import "testing"

func TestSkipped(t *testing.T)         { t.Skip("there is no moon tonight") }
func TestSkippedSilently(t *testing.T) { t.SkipNow() }
func TestSkippedInside(t *testing.T) {
	t.Run("runs", func(t *testing.T) {})
	t.Run("does not", func(t *testing.T) { t.Skipf("needs %d moons", 2) })
}
