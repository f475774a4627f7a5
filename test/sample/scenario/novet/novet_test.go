//go:build scenario

// Package novet compiles, but the vet that go test runs refuses it.
package novet

import "testing"

func TestNeverRuns(t *testing.T) { t.Logf("%d", "not a number") }
