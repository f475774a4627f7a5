// procfs DIR LINUX: serves DIR as DragonFly's /proc, from Linux's at LINUX, over FUSE; ends when DIR is unmounted.
//
// A listing shows what DragonFly's shows: processes and curproc, and in each process the first names below, without exe, cwd and
// root. The Linux programs that the stand-in is made of find what else they look for by name: a link into LINUX.
package main

import (
	"bytes"
	"encoding/binary"
	"log"
	"os"
	"strconv"
	"strings"
	"syscall"
)

var names = strings.Fields("cmdline ctl dbregs etype file fpregs map mem note notepg regs rlimit status stat statm task")

const shown = 13 // of these

var linux string

// A node's number is that of its path in this list; or for a process a multiple of 256, to which its files add the position of
// their name plus 1. Links into LINUX are added as they are looked up.
var paths = []string{"", "/", "curproc", "self"}

const (
	curproc = 2
	self    = 3
)

func number(path string) uint64 {
	for i, known := range paths {
		if known == path {
			return uint64(i)
		}
	}
	paths = append(paths, path)
	return uint64(len(paths) - 1)
}

const (
	directory = syscall.S_IFDIR | 0555
	link      = syscall.S_IFLNK | 0777
	file      = syscall.S_IFREG | 0444
	process   = 1 << 16 // the first number of a process's nodes; the list of paths never gets so long
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func pid(node uint64) string { return strconv.FormatUint(node>>8-process>>8, 10) }

func mode(node uint64) uint32 {
	switch {
	case node == 1 || node == self:
		return directory
	case node < process:
		return link
	case node&255 == 0:
		return directory
	case names[node&255-1] == "file" || node&255 > shown:
		return link
	}
	return file
}

// lookup gives the number of a name in a directory, 0 if there is none.
func lookup(parent uint64, name string) uint64 {
	switch {
	case parent == 1 && (name == "curproc" || name == "self"):
		return number(name)
	case parent == 1 && strings.Trim(name, "0123456789") == "":
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil || !exists(linux+"/"+name) {
			return 0
		}
		return process + id<<8
	case parent == 1 && exists(linux+"/"+name):
		return number(linux + "/" + name)
	case parent == self && exists(linux+"/self/"+name):
		return number(linux + "/self/" + name)
	case parent >= process:
		for i, known := range names {
			if name == known {
				return parent + uint64(i) + 1
			}
		}
	}
	return 0
}

// target is where a link leads for the thread that asks.
func target(node uint64, asking uint32) string {
	id := strconv.Itoa(int(asking))
	switch {
	case node == curproc:
		return id
	case node >= process && node&255 > shown:
		return linux + "/" + pid(node) + "/" + names[node&255-1]
	case node >= process:
		to, _ := os.Readlink(linux + "/" + pid(node) + "/exe")
		return to
	case paths[node] == linux+"/self/exe":
		to, _ := os.Readlink(linux + "/" + id + "/exe")
		return to
	}
	return paths[node]
}

func attributes(node uint64) []byte {
	var b bytes.Buffer
	uid, gid := uint32(0), uint32(0)
	if node >= process {
		var s syscall.Stat_t
		if syscall.Lstat(linux+"/"+pid(node), &s) != nil {
			return nil
		}
		uid, gid = s.Uid, s.Gid
	}
	put(&b, node, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0), [3]uint32{}, mode(node), uint32(1), uid, gid, uint32(0), uint32(4096), uint32(0))
	return b.Bytes()
}

// isKernelThread: children of kthreadd, number 2. DragonFly's have no number of their own.
func isKernelThread(id string) bool {
	stat, _ := os.ReadFile(linux + "/" + id + "/stat")
	after := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	return id == "2" || len(after) > 1 && string(after[1]) == "2"
}

func entries(node uint64) []string {
	all := append([]string{".", ".."}, names[:shown]...)
	if node == 1 {
		all = []string{".", "..", "curproc"}
		if d, err := os.Open(linux); err == nil {
			found, _ := d.Readdirnames(-1)
			d.Close()
			for _, name := range found {
				if strings.Trim(name, "0123456789") == "" && !isKernelThread(name) {
					all = append(all, name)
				}
			}
		}
	}
	return all
}

func listing(node uint64, offset uint64, size int) []byte {
	var b bytes.Buffer
	for i, name := range entries(node) {
		if uint64(i) < offset {
			continue
		}
		padded := (len(name) + 7) &^ 7
		if b.Len()+24+padded > size {
			break
		}
		kind := uint32(syscall.DT_UNKNOWN)
		put(&b, uint64(i)+1000, uint64(i)+1, uint32(len(name)), kind, []byte(name), make([]byte, padded-len(name)))
	}
	return b.Bytes()
}

func put(b *bytes.Buffer, values ...any) {
	for _, value := range values {
		binary.Write(b, binary.LittleEndian, value)
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: procfs DIR LINUX")
	}
	linux = os.Args[2]
	fd, err := syscall.Open("/usr/libexec/standin/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	options := "fd=" + strconv.Itoa(fd) + ",rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
	if err := syscall.Mount("procfs", os.Args[1], "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		log.Fatal(err)
	}
	request := make([]byte, 1<<17+4096)
	for {
		n, err := syscall.Read(fd, request)
		if err == syscall.EINTR || err == syscall.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return // unmounted
		}
		answer(fd, request[:n])
	}
}

func answer(fd int, request []byte) {
	le := binary.LittleEndian
	operation, unique, node, asking := le.Uint32(request[4:]), le.Uint64(request[8:]), le.Uint64(request[16:]), le.Uint32(request[32:])
	body := request[40:]
	var out bytes.Buffer
	failure := syscall.Errno(0)
	switch operation {
	case 2, 36, 42: // FORGET, INTERRUPT, BATCH_FORGET: no answer is expected
		return
	case 26: // INIT: protocol 7.31
		put(&out, uint32(7), uint32(31), le.Uint32(body[8:]), uint32(0), uint16(12), uint16(9), uint32(1<<16), uint32(1), uint16(0), uint16(0), [8]uint32{})
	case 1: // LOOKUP
		found := lookup(node, string(bytes.TrimRight(body, "\x00")))
		a := []byte(nil)
		if found != 0 {
			a = attributes(found)
		}
		if a == nil {
			failure = syscall.ENOENT
			break
		}
		// What never changes is asked for once: each start of a static program reads self/exe.
		valid := uint64(0)
		if found < process {
			valid = 3600
		}
		put(&out, found, uint64(0), valid, valid, uint32(0), uint32(0), a)
	case 3: // GETATTR
		a := attributes(node)
		if a == nil {
			failure = syscall.ENOENT
			break
		}
		put(&out, uint64(0), uint32(0), uint32(0), a)
	case 5: // READLINK
		out.WriteString(target(node, asking))
	case 14, 27: // OPEN, OPENDIR: sizes are unknown, so reads are not cut off at them
		put(&out, uint64(0), uint32(1), uint32(0))
	case 15: // READ
		text := []byte(nil)
		switch names[node&255-1] {
		case "cmdline", "status":
			text, _ = os.ReadFile(linux + "/" + pid(node) + "/" + names[node&255-1])
		case "etype":
			text = []byte("DragonFly ELF64\n")
		}
		offset, size := le.Uint64(body[8:]), uint64(le.Uint32(body[16:]))
		if offset < uint64(len(text)) {
			text = text[offset:]
			if uint64(len(text)) > size {
				text = text[:size]
			}
			out.Write(text)
		}
	case 28: // READDIR
		out.Write(listing(node, le.Uint64(body[8:]), int(le.Uint32(body[16:]))))
	case 17: // STATFS
		put(&out, [10]uint64{})
	case 18, 29, 25, 38: // RELEASE, RELEASEDIR, FLUSH, DESTROY
	default:
		failure = syscall.ENOSYS
	}
	var header bytes.Buffer
	if failure != 0 {
		out.Reset()
	}
	put(&header, uint32(16+out.Len()), -int32(failure), unique)
	header.Write(out.Bytes())
	syscall.Write(fd, header.Bytes())
}
