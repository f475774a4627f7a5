// Package child leaves a process that prints after the last test.
package child

import (
	"os"
	"os/exec"
	"testing"
)

func TestStarts(t *testing.T) {
	child := exec.Command("sh", "-c", "sleep 0.5; echo the child prints")
	child.Stdout = os.Stdout
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
}

func TestAfter(t *testing.T) {}
