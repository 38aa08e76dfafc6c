package protocol

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"switchyard/internal/message"
)

// MaxBatch is the most messages that one batch over HTTP may hold.
const MaxBatch = 256

// DecodeDraft reads the body of a publish over HTTP, {data, id?}, as strictly
// as a frame. The draft shares memory with the body.
func DecodeDraft(body []byte) (message.Draft, error) {
	var f fields
	if !isUTF8JSON(body) || !f.scan(body) {
		return message.Draft{}, malformedError("the body is one JSON object with data, and id if you have one")
	}
	return f.draft()
}

// DecodeSignal reads the body of a signal over HTTP, {data}, and returns the
// data, which shares memory with the body.
func DecodeSignal(body []byte) ([]byte, error) {
	var f fields
	if !isUTF8JSON(body) || !f.scan(body) {
		return nil, malformedError("the body is one JSON object with data")
	}
	return f.data, checkData(f.data)
}

// DecodeBatch reads the body of a batch over HTTP: 1 to MaxBatch objects
// [{room, data, id?}, ...] of at most maxItem bytes each. An error in one of
// the objects is a *message.BatchError. The drafts share memory with the body.
func DecodeBatch(body []byte, maxItem int) ([]message.Draft, error) {
	if !isUTF8JSON(body) {
		return nil, malformedError("the body is one JSON array of objects with room, data, and id if you have one")
	}
	i := skipSpace(body, 0)
	if body[i] != '[' {
		return nil, malformedError("the body is one JSON array of objects with room, data, and id if you have one")
	}
	var drafts []message.Draft
	for i = skipSpace(body, i+1); body[i] != ']'; {
		if len(drafts) == MaxBatch {
			return nil, invalidError("messages", "must be 1 to 256")
		}
		end := skipValue(body, i)
		d, err := decodeItem(body[i:end], maxItem)
		if err != nil {
			return nil, &message.BatchError{Index: len(drafts), Err: err}
		}
		drafts = append(drafts, d)
		if i = skipSpace(body, end); body[i] == ',' {
			i = skipSpace(body, i+1)
		}
	}
	if len(drafts) == 0 {
		return nil, invalidError("messages", "must be 1 to 256")
	}
	return drafts, nil
}

// decodeItem reads one message of a batch, which is valid JSON.
func decodeItem(item []byte, maxItem int) (message.Draft, error) {
	if len(item) > maxItem {
		return message.Draft{}, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("a message may have %d bytes, the bound of MAX_FRAME", maxItem)}
	}
	var f fields
	if item[0] != '{' || !f.scan(item) {
		return message.Draft{}, malformedError("a message is a JSON object with room, data, and id if you have one")
	}
	name, _ := unquote(f.room)
	room, err := message.ParseRoom(name)
	if err != nil {
		return message.Draft{}, err
	}
	if room.Reserved() {
		return message.Draft{}, ErrReserved
	}
	d, err := f.draft()
	d.Room = room
	return d, err
}

// draft returns a draft of data and id, without a room.
func (f *fields) draft() (d message.Draft, err error) {
	if err := checkData(f.data); err != nil {
		return d, err
	}
	d.Data = f.data
	if f.id != nil && string(f.id) != "null" {
		d.ID, err = parseID(f.id)
	}
	return d, err
}

// isUTF8JSON reports whether a body is JSON in UTF-8. encoding/json accepts
// invalid UTF-8, and a browser that received it in a text frame would have to
// close its connection (RFC 6455 §8.1).
func isUTF8JSON(body []byte) bool { return utf8.Valid(body) && json.Valid(body) }

func malformedError(reason string) error { return &Error{Code: CodeMalformed, Message: reason} }
