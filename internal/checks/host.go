package checks

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"switchyard/internal/stack"
)

// disk checks that the disks have room for an image, logs and the state.
func disk(ctx context.Context, f *Facts) []Finding {
	out, err := f.Stack.Docker(ctx, stack.QuickLimit, "info", "--format", "{{.DockerRootDir}}")
	if err != nil {
		return Failed(err)
	}
	var disks []diskSpace
	for _, path := range []string{f.Stack.Dir, strings.TrimSpace(string(out))} {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(path, &fs); err != nil {
			return Failf("read the free space of %s: %v", path, err)
		}
		disks = append(disks, diskSpace{path, fs.Bavail * uint64(fs.Bsize), fs.Blocks * uint64(fs.Bsize)})
	}
	return judgeDisks(disks)
}

// diskSpace is the space of the disk that holds path, in bytes.
type diskSpace struct {
	path       string
	free, size uint64
}

// judgeDisks returns a finding for each disk that has too little space, or the free
// space of the fullest disk.
func judgeDisks(disks []diskSpace) (findings []Finding) {
	for _, d := range disks {
		level := diskBound.level(1 - float64(d.free)/float64(d.size))
		if d.free < minDiskFree {
			level = Fail
		}
		if level != OK {
			findings = append(findings, Finding{level, d.path, fmt.Sprintf("has %d MiB (%.0f%%) free: `docker system df` shows what uses the space", d.free>>20, 100*float64(d.free)/float64(d.size))})
		}
	}
	if len(findings) > 0 {
		return findings
	}
	fullest := slices.MinFunc(disks, func(a, b diskSpace) int { return cmp.Compare(a.free, b.free) })
	return Okf("%d MiB free", fullest.free>>20)
}

// memoryForSecondColor checks that the host has memory for a second color.
func memoryForSecondColor(_ context.Context, f *Facts) []Finding {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Failf("read the available memory: %v", err)
	}
	var free int64
	if _, rest, found := strings.Cut(string(text), "MemAvailable:"); found {
		_, _ = fmt.Sscan(rest, &free) // in KiB
	}
	limits, used := int64(0), int64(0)
	for _, r := range f.Snapshot.Running(f.Route.Live) {
		limits += r.MemoryLimit
		used += r.ResidentMemory
	}
	return judgeMemory(free<<10, used, limits)
}

// judgeMemory compares the host's available memory with the live color's use and
// its limits, all in bytes. A second color needs as much as the first one, and a
// reserve.
func judgeMemory(free, used, limits int64) []Finding {
	switch {
	case free < used+used/5+secondColorReserve:
		return Failf("%d MiB are available, and the live color uses %d MiB: there is no room for a second one", free>>20, used>>20)
	case free < limits:
		return Warnf("%d MiB are available, and the new color may use up to %d MiB", free>>20, limits>>20)
	}
	return Okf("%d MiB available, the live color uses %d MiB", free>>20, used>>20)
}

// certificate checks that the certificate is valid for the domain, and for long
// enough.
func certificate(ctx context.Context, f *Facts) []Finding {
	config := f.Stack.Balancer().TLSConfig()
	config.ServerName = f.Stack.Env["DOMAIN"]
	plain, err := f.Stack.Balancer().Dial(ctx, "tcp", "")
	if err != nil {
		return Failf("connect to %s: %v", f.Stack.Balancer().Addr(), err)
	}
	defer plain.Close() //nolint:errcheck // nothing was sent
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return Failf("connect to %s as %s: %v", f.Stack.Balancer().Addr(), config.ServerName, err)
	}
	end := conn.ConnectionState().PeerCertificates[0].NotAfter // a server has one
	if level := certificateBound.level(end.Sub(f.now()).Hours() / 24); level != OK {
		return found(level, "", "the certificate of %s expires at %s and was not renewed", config.ServerName, end.Format(time.RFC3339))
	}
	if f.Stack.Insecure {
		return Warnf("valid until %s, not verified (--insecure)", end.Format(time.DateOnly))
	}
	return Okf("valid for %s until %s", config.ServerName, end.Format(time.DateOnly))
}

// dns checks that the domain resolves to this host.
func dns(ctx context.Context, f *Facts) []Finding {
	name := f.Stack.Env["DOMAIN"]
	found, err := net.DefaultResolver.LookupIP(ctx, "ip", name)
	if err != nil {
		return Failf("look up %s: %v", name, err)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return Failf("list this host's addresses: %v", err)
	}
	for _, ip := range found {
		if slices.ContainsFunc(own, func(a net.Addr) bool { n, ok := a.(*net.IPNet); return ok && n.IP.Equal(ip) }) {
			return Okf("%s resolves to %s, an address of this host", name, ip)
		}
	}
	return Warnf("%s resolves to %v, none of which is an address of this host: that is correct only behind a balancer or NAT", name, found)
}
