//go:build scenario

// Package ending ends its own process without a word: choose one with -run.
package ending

import (
	"os"
	"syscall"
	"testing"
)

func TestExits(t *testing.T) { os.Exit(3) }

func TestIsKilled(t *testing.T) {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
