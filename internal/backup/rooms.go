package backup

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"switchyard/internal/stack"
)

// maxFindings bounds the findings about an inconsistent log.
const maxFindings = 5

// sqlCheckRooms returns a line for each inconsistency: each room must have exactly
// the messages first to head, each message must have a room, and the seq of an id
// must not be over its room's head.
const sqlCheckRooms = `
WITH held AS (SELECT room_id, count(*) AS n, min(seq) AS low, max(seq) AS high FROM messages GROUP BY room_id)
SELECT 'room ' || name || ' should have ' || first || ' to ' || head || ' and has ' || coalesce(n, 0) || ' messages, ' || coalesce(low, 0) || ' to ' || coalesce(high, 0)
  FROM rooms LEFT JOIN held ON room_id = id
 WHERE coalesce(n, 0) <> head - first + 1 OR n > 0 AND (low <> first OR high <> head)
UNION ALL
SELECT n || ' messages, ' || low || ' to ' || high || ', have no room (' || room_id || ')'
  FROM held WHERE NOT EXISTS (SELECT FROM rooms WHERE id = room_id)
UNION ALL
SELECT 'room ' || name || ' has the id ' || i.id || ' for seq ' || seq || ', over its head ' || head
  FROM message_ids i JOIN rooms r ON r.id = room_id WHERE seq > head
LIMIT 6`

// errTooManyFindings ends psql once there are maxFindings.
var errTooManyFindings = errors.New("there are enough findings")

// checkRooms compares rooms, messages and ids with each other, and returns the
// inconsistencies.
func checkRooms(ctx context.Context, run func(context.Context, stack.Program) error) ([]string, error) {
	answer, err := output(ctx, run, "psql", "-XAt", "-v", "ON_ERROR_STOP=1", "-c", sqlCheckRooms)
	if err != nil || answer == "" {
		return nil, err
	}
	return strings.Split(answer, "\n"), nil
}

// compareRooms compares the restored rooms with those at the time of the backup:
// each must exist, with a head at least as high. If a new epoch began since, it
// compares nothing: heads may be lower in it.
func (r *restoredServer) compareRooms(ctx context.Context, now LogStats) (findings []string, err error) {
	if now.Epoch != r.set.Log.Epoch {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(r.set.Dir, headsFile))
	if err != nil {
		return nil, &DamageError{filepath.Join(r.set.Dir, headsFile), "is missing"}
	}
	defer func() { _ = f.Close() }()
	old, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, &DamageError{f.Name(), "is corrupt: it is not a gzip file"}
	}
	out, in := io.Pipe()
	compared := make(chan error, 1)
	go func() {
		found, err := compareRoomHeads(old, out)
		findings = found
		_ = out.CloseWithError(errors.Join(err, errTooManyFindings))
		compared <- err
	}()
	err = r.run(ctx, stack.Program{Args: []string{"psql", "-Xqc", sqlRoomHeads}, Stdout: in})
	_ = in.CloseWithError(err)
	if cause := <-compared; cause != nil {
		return nil, cause
	}
	if len(findings) >= maxFindings { // psql was ended early
		err = nil
	}
	return findings, err
}

// compareRoomHeads compares two lists of rooms, both sorted by name.
func compareRoomHeads(old, now io.Reader) (findings []string, err error) {
	oldLines, newLines := bufio.NewScanner(old), bufio.NewScanner(now)
	more := newLines.Scan()
	for oldLines.Scan() && len(findings) < maxFindings {
		name, head, err := parseRoomHead(oldLines.Text())
		if err != nil {
			return nil, err
		}
		for more {
			other, _, err := parseRoomHead(newLines.Text())
			if err != nil {
				return nil, err
			}
			if other >= name {
				break
			}
			more = newLines.Scan()
		}
		if !more {
			findings = append(findings, "room "+name+" is missing")
			continue
		}
		other, restored, err := parseRoomHead(newLines.Text())
		switch {
		case err != nil:
			return nil, err
		case other != name:
			findings = append(findings, "room "+name+" is missing")
		case restored < head:
			findings = append(findings, fmt.Sprintf("room %s ends at %d, but was at %d when the backup began", name, restored, head))
		}
	}
	if len(findings) < maxFindings {
		for more = more && newLines.Scan(); more; more = newLines.Scan() { // let psql end
		}
	}
	return findings, errors.Join(oldLines.Err(), newLines.Err())
}

// parseRoomHead parses a line of sqlRoomHeads. Names of rooms need no unescaping.
func parseRoomHead(line string) (name string, head int64, err error) {
	f := strings.Split(line, "\t")
	if len(f) != 3 {
		return "", 0, fmt.Errorf("%q is not a line of a list of rooms", line)
	}
	head, err = strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not a line of a list of rooms", line)
	}
	return f[0], head, nil
}
