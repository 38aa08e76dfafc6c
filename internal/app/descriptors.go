package app

// ownDescriptors are those that the process needs beside the connections of clients
// and of the database: listeners, Redis, files, the log, and the probes' reserve.
const ownDescriptors = 100

// clientDescriptors returns how many descriptors are left for connections of
// clients; 0 means that there is no limit. The runtime has raised the soft limit to
// the hard one.
func clientDescriptors(databaseConns int) int {
	limit, ok := descriptorLimit()
	if !ok {
		return 0
	}
	return limit - min(ownDescriptors+databaseConns, limit/2)
}
