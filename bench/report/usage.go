package report

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const userHz = 100 // USER_HZ: what /proc counts in

// CPU returns the processor time of processes and their children in seconds. A process
// that has ended counts nothing.
func CPU(pids []int) float64 {
	sum := 0.0
	for _, pid := range WithDescendants(pids) {
		if f := statOf(pid); len(f) > 12 {
			user, _ := strconv.ParseFloat(f[11], 64)
			system, _ := strconv.ParseFloat(f[12], 64)
			sum += (user + system) / userHz
		}
	}
	return sum
}

// WithDescendants returns the processes and their descendants.
func WithDescendants(pids []int) []int {
	parents := map[int][]int{}
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range found {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if f := statOf(pid); len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			parents[parent] = append(parents[parent], pid)
		}
	}
	all := append([]int(nil), pids...)
	for i := 0; i < len(all); i++ {
		all = append(all, parents[all[i]]...)
	}
	return all
}

// statOf returns the fields of a stat file that follow the name.
func statOf(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// RSS returns the resident memory of one process in bytes.
func RSS(pid int) int64 { return status(pid, "VmRSS:") << 10 }

// Descriptors returns how many descriptors a process has open.
func Descriptors(pid int) int64 {
	open, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	return int64(len(open))
}

func status(pid int, key string) int64 {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return fieldOf(string(b), key)
}

// Slab returns the kernel's own memory in bytes, which includes the sockets of both ends.
func Slab() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	return fieldOf(string(b), "Slab:") << 10
}

func fieldOf(text, key string) int64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// A Machine has the processor times of the whole machine, in seconds.
type Machine struct{ Total, Idle, Steal float64 }

// ReadMachine returns the present processor times.
func ReadMachine() Machine {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	var m Machine
	for i, f := range strings.Fields(line) {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 { // guest time is counted in user time already
			continue
		}
		m.Total += v / userHz
		switch i {
		case 4, 5:
			m.Idle += v / userHz
		case 8:
			m.Steal += v / userHz
		}
	}
	return m
}
