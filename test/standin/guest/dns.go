// The name server of QEMU's network, 10.0.2.3: knows the package mirror's name, so that looking it up is tried offline, too.
// Its address is the guest's own then (init); without a mirror from the host, QEMU's own server answers.
package main

import (
	"bytes"
	"log"
	"net"
)

// In a question: the labels with their lengths, type A, class IN.
var asked = []byte("\x0dmirror-master\x0cdragonflybsd\x03org\x00\x00\x01\x00\x01")

func main() {
	socket, err := net.ListenPacket("udp", ":53")
	if err != nil {
		log.Fatal(err)
	}
	packet := make([]byte, 512)
	for {
		n, from, err := socket.ReadFrom(packet)
		if err != nil || n < 12+5 {
			continue
		}
		name := bytes.IndexByte(packet[12:n], 0)
		if name < 0 || 12+name+5 > n {
			continue
		}
		question := packet[12 : 12+name+5]
		// A response with recursion: one question, no answer, "no such name".
		answer := append([]byte{packet[0], packet[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
		if bytes.EqualFold(question, asked) {
			answer[3], answer[7] = 0x80, 1
			// The name at byte 12, A, IN, for an hour, 4 bytes: the host.
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 10, 0, 2, 2)
		}
		socket.WriteTo(answer, from)
	}
}
