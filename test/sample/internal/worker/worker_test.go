package worker

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root: run with doas")
	}
}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return uint64(st.Dev)
}

func TestMount(t *testing.T) {
	needsRoot(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "worker")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Mount(dir); err != nil {
		t.Fatal(err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			Unmount(dir)
		}
	})

	if device(t, dir) == device(t, parent) {
		t.Errorf("%s is no file system of its own", dir)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "content" {
		t.Errorf("read %q, %v, want content", got, err)
	}

	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	mounted = false
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("%s is still there after the unmount: %v", file, err)
	}
}

func TestMountSaysWhatFailed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	err := Mount(dir)
	if err == nil {
		Unmount(dir)
		t.Fatal("mounted over a directory that does not exist")
	}
	if !strings.Contains(err.Error(), "missing") {
		t.Errorf("the error does not name the directory: %v", err)
	}
}
