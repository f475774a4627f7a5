//go:build scenario

// Package panicking panics in the middle: the tests after it never run.
package panicking

import "testing"

func TestBefore(t *testing.T) {}

func TestPanics(t *testing.T) {
	var nothing map[string]int
	nothing["a"] = 1
}

func TestAfter(t *testing.T) {}
