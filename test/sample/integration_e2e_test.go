//go:build integration

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Needs nothing of the package, so that `go test ./integration_e2e_test.go` compiles too.
func TestIntegrationBinary(t *testing.T) {
	if _, err := os.Stat("./sample"); err != nil {
		t.Skip("./sample is not built: gmake build")
	}
	out, err := exec.Command("./sample", "three", "small", "words").CombinedOutput()
	if err != nil {
		t.Fatalf("./sample: %v\n%s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != "3" {
		t.Errorf("./sample three small words = %q, want 3", got)
	}
}
