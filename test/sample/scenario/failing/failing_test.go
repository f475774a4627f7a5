//go:build scenario

// Package failing has tests that pass beside tests that fail in every way.
package failing

import "testing"

func TestPasses(t *testing.T) { t.Log("said by a test that passes") }

func TestFails(t *testing.T) {
	t.Error("first reason")
	t.Error("second reason,\non two lines")
}

func TestFailsAtOnce(t *testing.T) {
	t.Fatal("no further")
}

func TestFailsInSubtest(t *testing.T) {
	t.Run("good", func(t *testing.T) {})
	t.Run("bad", func(t *testing.T) { t.Error("the subtest's reason") })
}
