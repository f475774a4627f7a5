// Command sample counts the words of its arguments. It is the project that the end-to-end tests sync, build and test in the
// VM: small, so that it compiles in seconds under emulation, and with a test of every kind that a real project has.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"sample/internal/words"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Printf("sample for %s/%s\n", runtime.GOOS, runtime.GOARCH)
		return
	}
	fmt.Println(words.Count(strings.Join(os.Args[1:], " ")))
}
