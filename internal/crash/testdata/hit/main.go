// Command hit comes to the crash points that it is given, in their order, and
// says so after each.
package main

import (
	"fmt"
	"os"

	"lb/internal/crash"
)

func main() {
	for _, name := range os.Args[1:] {
		crash.At(name)
		fmt.Println(name)
	}
}
