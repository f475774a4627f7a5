//go:build scenario

// Package leaking passes, and leaves a mount, a file and a process under /build.
package leaking

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"sample/internal/worker"
)

func TestLeaks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root: run with doas")
	}
	if err := os.MkdirAll("/build/Workers/leak", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/build/Workers/leak.log", []byte("left behind\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := worker.Mount("/build/Workers/leak"); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("sleep", "600")
	command.Dir = "/build/Workers"
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
}
