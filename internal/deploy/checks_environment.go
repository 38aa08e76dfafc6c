package deploy

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	pm "github.com/prometheus/common/model"

	"switchyard/internal/stack"
)

// Bounds of the checks.
const (
	certificateWarnBefore = 14 * 24 * time.Hour // renewal is overdue
	certificateFailBefore = 48 * time.Hour
	minFreeDiskPercent    = 10
	minFreeDiskBytes      = uint64(2 << 30)
	maxStandbyLag         = 30 * time.Second
	maxBackupAge          = 8 * 24 * time.Hour // of the last verified backup
	recentErrorsSpan      = 5 * time.Minute
	alertmanagerPort      = "9093"
)

// disk checks that the disks have room for an image, logs and the state.
func (p *Preflight) disk(ctx context.Context, _ *checkInput) (string, error) {
	out, err := p.Stack.Docker(ctx, stack.QuickLimit, "info", "--format", "{{.DockerRootDir}}")
	if err != nil {
		return "", err
	}
	var disks []diskSpace
	for _, path := range []string{p.Stack.Dir, strings.TrimSpace(string(out))} {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(path, &fs); err != nil {
			return "", fmt.Errorf("read the free space of %s: %w", path, err)
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

// judgeDisks returns an error for the first disk that has too little space, or the
// free space of the fullest disk.
func judgeDisks(disks []diskSpace) (string, error) {
	for _, d := range disks {
		if d.free < minFreeDiskBytes || d.free*100 < d.size*minFreeDiskPercent {
			return "", fmt.Errorf("%s has %d MiB free, and needs %d%% and 2 GiB: `docker system df` shows what uses the space", d.path, d.free>>20, minFreeDiskPercent)
		}
	}
	fullest := slices.MinFunc(disks, func(a, b diskSpace) int { return cmp.Compare(a.free, b.free) })
	return fmt.Sprintf("%d MiB free", fullest.free>>20), nil
}

// memory checks that the host has memory for a second color.
func (p *Preflight) memory(ctx context.Context, in *checkInput) (string, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", fmt.Errorf("read the available memory: %w", err)
	}
	var free int64
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			free = kib << 10
		}
	}
	limits, used := int64(0), int64(0)
	for _, r := range in.snapshot.Running(in.route.Live) {
		limits += r.MemoryLimit
		used += residentMemory(ctx, p.Stack.Client, r.Address)
	}
	return judgeMemory(free, used, limits)
}

// judgeMemory compares the host's available memory with the live color's use and
// its limits, all in bytes. A second color needs as much as the first one, and a
// reserve.
func judgeMemory(free, used, limits int64) (string, error) {
	switch {
	case free < used+used/5+(256<<20):
		return "", fmt.Errorf("%d MiB are available, and the live color uses %d MiB: there is no room for a second one", free>>20, used>>20)
	case free < limits:
		return "", warningf("%d MiB are available, and the new color may use up to %d MiB", free>>20, limits>>20)
	}
	return fmt.Sprintf("%d MiB available, the live color uses %d MiB", free>>20, used>>20), nil
}

// residentMemory queries a replica for its resident memory in bytes. It returns 0
// if the replica does not answer.
func residentMemory(ctx context.Context, client *http.Client, address string) int64 {
	samples, err := stack.FetchMetrics(ctx, client, address)
	if err != nil {
		return 0
	}
	for _, s := range samples {
		if s.Metric[pm.MetricNameLabel] == "process_resident_memory_bytes" {
			return int64(s.Value)
		}
	}
	return 0
}

// certificate checks that the certificate is valid for the domain, and for long
// enough.
func (p *Preflight) certificate(ctx context.Context, _ *checkInput) (string, error) {
	config := p.Stack.Balancer().TLSConfig()
	config.ServerName = p.Stack.Env["DOMAIN"]
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: config}
	conn, err := d.DialContext(ctx, "tcp", p.Stack.Balancer().Addr())
	if err != nil {
		return "", fmt.Errorf("connect to %s as %s: %w", p.Stack.Balancer().Addr(), config.ServerName, err)
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	tlsConn, ok := conn.(*tls.Conn)
	if !ok || len(tlsConn.ConnectionState().PeerCertificates) == 0 {
		return "", errors.New("the server sent no certificate")
	}
	end := tlsConn.ConnectionState().PeerCertificates[0].NotAfter
	left := end.Sub(p.Clock.Now())
	switch {
	case left < certificateFailBefore:
		return "", fmt.Errorf("the certificate of %s expires at %s", config.ServerName, end.Format(time.RFC3339))
	case left < certificateWarnBefore:
		return "", warningf("the certificate of %s expires at %s and was not renewed", config.ServerName, end.Format(time.RFC3339))
	case p.Stack.Insecure:
		return "", warningf("valid until %s, not verified (--insecure)", end.Format(time.DateOnly))
	}
	return "valid for " + config.ServerName + " until " + end.Format(time.DateOnly), nil
}

// dns checks that the domain resolves to this host.
func (p *Preflight) dns(ctx context.Context, _ *checkInput) (string, error) {
	name := p.Stack.Env["DOMAIN"]
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", name, err)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, ip := range found {
		for _, a := range own {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IP(ip.Unmap().AsSlice())) {
				return fmt.Sprintf("%s resolves to %s, an address of this host", name, ip), nil
			}
		}
	}
	return "", warningf("%s resolves to %v, none of which is an address of this host: that is correct only behind a balancer or NAT", name, found)
}

// metrics checks that Prometheus has the metrics of all live replicas, which a
// deploy is judged by.
func (p *Preflight) metrics(ctx context.Context, in *checkInput) (string, error) {
	live := currentSpec(in.route.Live, in.snapshot)
	if live.Replicas == 0 {
		_, err := p.Metrics.Alerts(ctx) // any result will do
		return "Prometheus answers", err
	}
	window, err := p.Metrics.Window(ctx, live.Deployment, p.Settings.Window)
	if err != nil {
		return "", fmt.Errorf("errors, response time and memory can't be judged: %w; --without-metrics continues with health checks only", err)
	}
	if window.Replicas < live.Replicas {
		return "", fmt.Errorf("Prometheus sees %d of %d live replicas", window.Replicas, live.Replicas) //nolint:staticcheck // a name
	}
	return fmt.Sprintf("Prometheus sees all %d live replicas", window.Replicas), nil
}

// alerting checks that alerts reach Alertmanager.
func (p *Preflight) alerting(ctx context.Context, _ *checkInput) (string, error) {
	address, err := p.Stack.ServiceURL(ctx, "alertmanager", alertmanagerPort)
	if err != nil {
		return "", err
	}
	if status, _, err := stack.Fetch(ctx, p.Stack.Client, address+"/-/ready"); err != nil || status != http.StatusOK {
		return "", errors.Join(fmt.Errorf("the alertmanager is not ready (status %d)", status), err)
	}
	prometheus, err := p.Metrics.FindURL(ctx)
	if err != nil {
		return "", err
	}
	var known struct {
		Data struct {
			ActiveAlertmanagers []struct{ URL string } `json:"activeAlertmanagers"`
		}
	}
	if err := stack.FetchJSON(ctx, p.Stack.Client, prometheus+"/api/v1/alertmanagers", &known); err != nil {
		return "", err
	}
	if len(known.Data.ActiveAlertmanagers) == 0 {
		return "", errors.New("Prometheus sends alerts to no Alertmanager") //nolint:staticcheck // a name
	}
	return "Alertmanager is ready, and Prometheus is connected to it", nil
}

// alerts checks that no critical alert fires. Alerts of severity info, such as the
// watchdog that always fires, do not count.
func (p *Preflight) alerts(ctx context.Context, _ *checkInput) (string, error) {
	firing, err := p.Metrics.Alerts(ctx)
	if err != nil {
		return "", err
	}
	var critical, other []string
	for _, a := range firing {
		switch a.Severity {
		case "critical", "page":
			critical = append(critical, a.Name)
		case "none", "info", "":
		default:
			other = append(other, a.Name)
		}
	}
	if len(critical) > 0 {
		return "", fmt.Errorf("firing: %s", joinDistinct(critical))
	}
	if len(other) > 0 {
		return "", warningf("firing: %s", joinDistinct(other))
	}
	return "none firing", nil
}

// joinDistinct sorts the names and joins them without duplicates.
func joinDistinct(names []string) string {
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// recentErrors checks that the live color has no more server errors than a deploy
// tolerates.
func (p *Preflight) recentErrors(ctx context.Context, in *checkInput) (string, error) {
	live := currentSpec(in.route.Live, in.snapshot)
	if live.Replicas == 0 {
		return "no replica is live", nil
	}
	window, err := p.Metrics.Window(ctx, live.Deployment, recentErrorsSpan)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%.2f%% of %.0f operations in %v failed with a server error", 100*window.ErrorRatio(), window.Operations, recentErrorsSpan)
	if t := p.Settings.Triggers; window.Operations >= float64(t.ErrorSamples) && 100*window.ErrorRatio() > t.ErrorPercent {
		return "", errors.New(text)
	}
	return text, nil
}

// migrations checks that the image's pending migrations only add to the schema.
func (p *Preflight) migrations(ctx context.Context, in *checkInput) (string, error) {
	if in.image.Ref == "" {
		return "", warningf("no image was named")
	}
	out, err := stack.Images{Stack: p.Stack}.Migrate(ctx, in.image, checkLimit, "migrate", "-plan")
	if err != nil {
		return "", fmt.Errorf("read the migrations of the image: %w", err)
	}
	var pending []struct {
		Name     string `json:"name"`
		Breaking int64  `json:"breaking"`
	}
	if err := json.Unmarshal(out, &pending); err != nil {
		return "", fmt.Errorf("read the migrations of the image: %w", err)
	}
	names := make([]string, 0, len(pending))
	for _, m := range pending {
		names = append(names, m.Name)
		if m.Breaking > 0 {
			return "", fmt.Errorf("%s is not additive: binaries built for a schema older than %d stop serving, and a rollback is impossible", m.Name, m.Breaking)
		}
	}
	if len(names) == 0 {
		return "none pending", nil
	}
	return strings.Join(names, ", ") + " pending; all are additive", nil
}

// redis checks that the live replicas are connected to their broker.
func (p *Preflight) redis(_ context.Context, in *checkInput) (string, error) {
	replicas := in.snapshot.Running(in.route.Live)
	for _, r := range replicas {
		if state := r.UnhealthyComponents["broker"]; state != "" {
			return "", fmt.Errorf("%s: the broker is %s", r.Name, state)
		}
	}
	if len(replicas) == 0 {
		return "", warningf("no replica is running")
	}
	return fmt.Sprintf("%d replicas are connected to their broker", len(replicas)), nil
}

// standby checks that the database's standby follows the primary without much lag.
func (p *Preflight) standby(ctx context.Context, _ *checkInput) (string, error) {
	primary := "postgres"
	if text, err := os.ReadFile(p.Stack.Dir + "/state/postgres/primary"); err == nil {
		primary = strings.TrimSpace(string(text))
	}
	out, err := p.Stack.Compose(ctx, stack.QuickLimit, nil, "exec", "-T", primary, "psql", "-U", "postgres", "-d", "postgres", "-Atc",
		`SELECT count(*), coalesce(max(extract(epoch FROM replay_lag)), 0)::bigint FROM pg_stat_replication WHERE state = 'streaming'`)
	if err != nil {
		return "", fmt.Errorf("query %s: %w", primary, err)
	}
	var standbys, lag int64
	if _, err := fmt.Sscanf(strings.TrimSpace(string(out)), "%d|%d", &standbys, &lag); err != nil {
		return "", fmt.Errorf("query %s: %q: %w", primary, out, err)
	}
	switch {
	case standbys == 0:
		return "", fmt.Errorf("no standby follows %s", primary)
	case time.Duration(lag)*time.Second > maxStandbyLag:
		return "", fmt.Errorf("the standby is %d s behind, over %v", lag, maxStandbyLag)
	}
	return fmt.Sprintf("%d standbys follow %s, %d s behind", standbys, primary, lag), nil
}

// backup checks that a backup was verified recently.
func (p *Preflight) backup(ctx context.Context, _ *checkInput) (string, error) {
	at, _, err := p.Metrics.QueryValue(ctx, `max(switchyard_backup_last_verified_timestamp_seconds)`, time.Now())
	if err != nil {
		return "", err
	}
	if at == 0 {
		return "", errors.New("no backup has been verified yet: `switchyard backup` makes one, `switchyard backup verify` verifies it; Prometheus sees it within half a minute")
	}
	age := p.Clock.Now().Sub(time.Unix(int64(at), 0)).Round(time.Minute)
	if age > maxBackupAge {
		return "", fmt.Errorf("the last backup was verified %v ago, over %v", age, maxBackupAge)
	}
	return fmt.Sprintf("verified %v ago", age), nil
}
