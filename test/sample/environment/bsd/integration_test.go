//go:build integration

// Package bsd starts processes that leave their process group, and finds and ends them all the same.
package bsd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// orphan starts a process in a session of its own whose parent is gone, and returns its pid.
func orphan(t *testing.T, seconds string) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("other users' processes take root: run with doas")
	}
	command := exec.Command("sh", "-c", "sleep "+seconds+" >/dev/null 2>&1 & echo $!")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// find returns the pids of the processes whose command line is this.
func find(t *testing.T, commandLine string) []int {
	t.Helper()
	out, err := exec.Command("ps", "-axww", "-o", "pid,stat,command").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, line := range bytes.Split(out, []byte("\n")) {
		field := strings.Fields(string(line))
		if len(field) < 3 || strings.HasPrefix(field[1], "Z") || strings.Join(field[2:], " ") != commandLine {
			continue
		}
		pid, err := strconv.Atoi(field[0])
		if err != nil {
			t.Fatalf("ps says %q", line)
		}
		pids = append(pids, pid)
	}
	return pids
}

// await returns the pids once there are so many: a process has another command line until it has called exec, and is there
// for a moment after it was killed.
func await(t *testing.T, number int, commandLine string) []int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		pids := find(t, commandLine)
		if len(pids) == number {
			return pids
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q: processes %v after 20 s, want %d", commandLine, pids, number)
		}
	}
}

func TestIntegration_ProcfindReaping(t *testing.T) {
	seconds := fmt.Sprint(100000 + os.Getpid())
	pid := orphan(t, seconds)
	if found := await(t, 1, "sleep "+seconds); found[0] != pid {
		t.Fatalf("found %v, want [%d]", found, pid)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, 0, "sleep "+seconds)
}

func TestIntegration_OrphanedProcesses(t *testing.T) {
	seconds := fmt.Sprint(200000 + os.Getpid())
	for i := 0; i < 3; i++ {
		orphan(t, seconds)
	}
	for _, pid := range await(t, 3, "sleep "+seconds) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	await(t, 0, "sleep "+seconds)
}
