//go:build scenario

// Package racing prints from parallel tests at once, and prints what looks like something else.
package racing

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestRacing(t *testing.T) {
	for _, name := range []string{"a", "b", "c", "d"} {
		name := name
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := 0; i < 200; i++ {
				fmt.Printf("stdout of %s, line %d\n", name, i)
				fmt.Fprintf(os.Stderr, "stderr of %s, line %d\n", name, i)
				t.Logf("log of %s, line %d", name, i)
			}
		})
	}
}

func TestLooksLikeResults(t *testing.T) {
	fmt.Println("--- FAIL: TestNotATest (0.00s)")
	fmt.Println("FAIL\tsample/not/a/package\t0.001s")
	fmt.Println(`{"Action":"fail","Package":"sample/not/a/package","Test":"TestNotATest"}`)
	fmt.Println("exit status 1")
}

func TestPrintsOddities(t *testing.T) {
	fmt.Println("not UTF-8: \xff\xfe, a control character: \x01, colour: \x1b[31mred\x1b[0m, an end of CDATA: ]]>, markup: <&\">")
	fmt.Println(strings.Repeat("x", 1<<20))
	fmt.Print("no newline at the end")
}
