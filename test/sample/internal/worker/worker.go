// Package worker gives a build a file system of its own in memory.
package worker

import (
	"fmt"
	"os/exec"
)

// Mount puts an empty tmpfs over dir. It takes root.
func Mount(dir string) error {
	return run("mount", "-t", "tmpfs", "tmpfs", dir)
}

// Unmount removes it again, with all that was written.
func Unmount(dir string) error {
	return run("umount", dir)
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %v: %s", name, args, err, out)
	}
	return nil
}
