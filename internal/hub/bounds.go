package hub

// bounds are what a topic keeps and asks for; beyond them the log has it. They
// belong to a hub and not to the package for the tests' sake alone: with rings
// and pages of three messages, a handful reaches every edge.
type bounds struct {
	inboxBytes int // received, not yet put in order
	holdFrames int // before their turn
	holdBytes  int
	ringFrames int // what a client may have missed and still resume from memory
	ringBytes  int
	pageFrames int // one read of the log
	pageBytes  int
}

func usualBounds() bounds {
	return bounds{
		inboxBytes: 512 << 10,
		holdFrames: 512,
		holdBytes:  512 << 10,
		ringFrames: 256,
		ringBytes:  256 << 10,
		pageFrames: 200,
		pageBytes:  256 << 10,
	}
}
