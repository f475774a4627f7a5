package goroutine

import "testing"

func TestBefore(t *testing.T) {}

func TestStarts(t *testing.T) {
	go func() { panic("in a goroutine") }()
	select {}
}
