// Package build runs a build that can be cancelled.
package build

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

func TestIntegration_Build(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: runs a command")
	}
	if out, err := exec.Command("sh", "-c", "echo built").Output(); err != nil || string(out) != "built\n" {
		t.Errorf("the build said %q, %v", out, err)
	}
}

func TestIntegration_BuildCancellation(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: runs a command")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	started := time.Now()
	if err := exec.CommandContext(ctx, "sleep", "60").Run(); err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("the build was not cancelled: %v", err)
	}
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("the cancelled build ran for %v", took)
	}
}
