//go:build scenario

// Package flooding prints SAMPLE_FLOOD_MB megabytes, 200 unless told otherwise.
package flooding

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestFloods(t *testing.T) {
	megabytes := 200
	if text := os.Getenv("SAMPLE_FLOOD_MB"); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		megabytes = number
	}
	kilobyte := strings.Repeat(strings.Repeat("f", 63)+"\n", 16)
	for i := 0; i < megabytes*1024; i++ {
		if _, err := os.Stdout.WriteString(kilobyte); err != nil {
			t.Fatal(err)
		}
	}
}
