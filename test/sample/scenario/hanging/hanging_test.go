//go:build scenario

// Package hanging never ends, and takes no notice of a polite request to; SIGQUIT still has it dump its goroutines.
package hanging

import (
	"fmt"
	"os/signal"
	"syscall"
	"testing"
)

func TestHangs(t *testing.T) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	fmt.Println("hanging")
	hangHere()
}

func hangHere() {
	select {}
}
