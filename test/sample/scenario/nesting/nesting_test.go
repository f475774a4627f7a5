//go:build scenario

// Package nesting has subtests of subtests, in parallel, with names that need escaping.
package nesting

import "testing"

func TestNesting(t *testing.T) {
	for _, outer := range []string{"plain", "with space", "with/slash", `with"quote`, "<&>", "größe"} {
		outer := outer
		t.Run(outer, func(t *testing.T) {
			t.Parallel()
			for _, inner := range []string{"one", "two"} {
				t.Run(inner, func(t *testing.T) {
					t.Parallel()
					t.Log("deep inside")
				})
			}
		})
	}
}

func TestSameName(t *testing.T) {
	t.Run("twin", func(t *testing.T) {})
	t.Run("twin", func(t *testing.T) {})
}
