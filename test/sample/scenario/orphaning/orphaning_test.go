//go:build scenario

// Package orphaning leaves processes behind that are in a session of their own and take no notice of SIGTERM. They hold no
// file open that a reader of the test's output would wait for. They end by themselves after ten minutes.
package orphaning

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
)

func leave(t *testing.T) {
	t.Helper()
	command := exec.Command("sh", "-c", "trap '' HUP INT TERM; sleep 600 & wait")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("left behind:", command.Process.Pid)
}

func TestLeavesProcesses(t *testing.T) {
	leave(t)
	leave(t)
}

func TestLeavesProcessesAndHangs(t *testing.T) {
	leave(t)
	select {}
}
