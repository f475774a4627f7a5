//go:build scenario

// Package many has 2,000 tests, made at run time; every hundredth is skipped.
package many

import (
	"fmt"
	"testing"
)

func TestMany(t *testing.T) {
	for i := 0; i < 2000; i++ {
		i := i
		t.Run(fmt.Sprintf("number %04d", i), func(t *testing.T) {
			if i%100 == 99 {
				t.Skip("a hundredth")
			}
			t.Logf("this is test %d", i)
		})
	}
}
