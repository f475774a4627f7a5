// Package swallows ends with 0 whatever its tests did.
package swallows

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	m.Run()
	os.Exit(0)
}

func TestFails(t *testing.T) { t.Error("the swallowed reason") }
