// The name server of QEMU's network, 10.0.2.3: knows the package mirror's name, so that looking it up is tried offline, too.
// Its address is the guest's own then (init); without a mirror from the host, QEMU's own server answers.
package main

import (
	"bytes"
	"log"
	"net"
)

// As a question has it: the labels with their lengths; type and class follow.
var mirror = []byte("\x0dmirror-master\x0cdragonflybsd\x03org\x00")

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
		name := bytes.IndexByte(packet[12:n], 0) + 1
		if name == 0 || 12+name+4 > n {
			continue
		}
		question := packet[12 : 12+name+4]
		// A response with recursion: one question, no answer, "no such name".
		answer := append([]byte{packet[0], packet[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
		if bytes.EqualFold(question[:name], mirror) {
			answer[3] = 0x80 // no error
			if question[name+1] == 1 {
				// One answer: the name at byte 12, type A, class IN, for an hour, 4 bytes: the host.
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 10, 0, 2, 2)
			}
		}
		socket.WriteTo(answer, from)
	}
}
