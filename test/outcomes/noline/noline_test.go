// Package noline prints without a newline, so that what the test binary says next stands in the same line.
package noline

import (
	"fmt"
	"strings"
	"testing"
)

func TestPrints(t *testing.T) { fmt.Print("progress: 100%") }

func TestParent(t *testing.T) {
	t.Run("sub", func(t *testing.T) { fmt.Print("in the subtest ") })
	fmt.Print("after it ")
}

// go test splits a line of more than 4096 bytes, here within "--- PASS".
func TestLongLine(t *testing.T) { fmt.Print(strings.Repeat("y", 5*1024-4)) }

func TestLast(t *testing.T) { fmt.Print("50%") }
