//go:build scenario

// Package slow says a line a second for SAMPLE_SECONDS, 60 unless told otherwise.
package slow

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

func TestSlow(t *testing.T) {
	seconds := 60
	if text := os.Getenv("SAMPLE_SECONDS"); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		seconds = number
	}
	for i := 1; i <= seconds; i++ {
		time.Sleep(time.Second)
		fmt.Println("second", i)
	}
}
