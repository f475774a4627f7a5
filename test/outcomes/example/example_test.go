package example

import "fmt"

func Example_good() {
	fmt.Println("x")
	// Output: x
}

func Example_bad() {
	fmt.Println("got this")
	// Output: want that
}
