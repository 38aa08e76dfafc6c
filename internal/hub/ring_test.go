package hub

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A ring holds the newest of all frames that were pushed, as many as its bounds
// allow. The model keeps all.
func TestPropertyARingKeepsTheNewestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 6).Draw(t, "most")
		var r ring
		var all []protocol.Frame
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				f := make(protocol.Frame, rapid.IntRange(1, 30).Draw(t, "bytes"))
				for i := range f {
					f[i] = byte(len(all))
				}
				// The limit changes with the node's budget.
				limit := rapid.SampledFrom([]int{10, 100, 100}).Draw(t, "limit")
				r.push(f, most, limit)
				if all = append(all, f); r.bytes > limit || r.len() > most {
					t.Fatalf("%d frames and %d bytes, want at most %d and %d", r.len(), r.bytes, most, limit)
				}
			},
			"tail": func(t *rapid.T) {
				n := rapid.IntRange(0, r.len()).Draw(t, "n")
				for i, f := range r.tail(n) {
					if want := all[len(all)-n+i]; !bytes.Equal(f, want) {
						t.Fatalf("frame %d of the newest %d is %v, want %v", i, n, f, want)
					}
				}
			},
			"covers": func(t *rapid.T) {
				last := message.Seq(len(all))
				after := message.Seq(rapid.IntRange(0, len(all)+2).Draw(t, "after"))
				if got, want := r.covers(after, last), after <= last && int(last-after) <= r.len(); got != want {
					t.Fatalf("covers(%d, %d) = %v with %d frames", after, last, got, r.len())
				}
			},
			"": func(t *rapid.T) {
				size := 0
				for _, f := range r.tail(r.len()) {
					size += len(f)
				}
				if size != r.bytes || cap(r.frames) > 8*(most+2) {
					t.Fatalf("the frames have %d bytes, the ring counts %d; an array of %d for %d frames", r.bytes, size, cap(r.frames), most)
				}
			},
		})
	})
}

// A reorder buffer returns each frame once, in its epoch, unless it was pruned.
func TestPropertyTheReorderBufferMatchesItsModel(t *testing.T) {
	seqs, epochs := rapid.Int64Range(1, 9), rapid.SampledFrom([]message.Epoch{"a", "b"})
	rapid.Check(t, func(t *rapid.T) {
		var h reorderBuffer
		model := map[message.Seq]roomFrame{}
		const frames, size = 4, 40
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				e := roomFrame{seq: message.Seq(seqs.Draw(t, "seq")), epoch: epochs.Draw(t, "epoch")}
				e.frame = make(protocol.Frame, rapid.IntRange(1, 30).Draw(t, "bytes"))
				_, buffered := model[e.seq]
				full := len(model) >= frames || h.bytes > 0 && h.bytes+len(e.frame) > size
				if got := h.put(&e, frames, size); got != (buffered || !full) {
					t.Fatalf("put = %v, already buffered %v, full %v", got, buffered, full)
				}
				if !buffered && !full {
					model[e.seq] = e
				}
			},
			"pop": func(t *rapid.T) {
				seq, epoch := message.Seq(seqs.Draw(t, "seq")), epochs.Draw(t, "epoch")
				want, buffered := model[seq]
				buffered = buffered && want.epoch == epoch
				if got, ok := h.pop(seq, epoch); ok != buffered || ok && len(got.frame) != len(want.frame) {
					t.Fatalf("pop(%d, %s) = %v %v, buffered %v", seq, epoch, got.seq, ok, buffered)
				}
				if buffered {
					delete(model, seq)
				}
			},
			"prune": func(t *rapid.T) {
				last, epoch := message.Seq(seqs.Draw(t, "last")), epochs.Draw(t, "epoch")
				h.prune(last, epoch)
				for seq, e := range model {
					if seq <= last || e.epoch != epoch {
						delete(model, seq)
					}
				}
			},
			"": func(t *rapid.T) {
				bytes := 0
				for _, e := range model {
					bytes += len(e.frame)
				}
				if h.len() != len(model) || h.bytes != bytes {
					t.Fatalf("%d frames and %d bytes, want %d and %d", h.len(), h.bytes, len(model), bytes)
				}
			},
		})
	})
}
