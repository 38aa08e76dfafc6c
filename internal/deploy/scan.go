package deploy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// scanCheck is the name of the image scan.
const scanCheck = "scan"

// A scannedImage is an image that the operator's scan gets.
type scannedImage struct {
	ref string
	// replaced says that it runs now and that the image to be deployed takes its place.
	replaced bool
}

// imagesToScan returns the image to be deployed, which has no reference if none was named,
// and those of the compose file, each once. Those of the colors are the last, since what is
// replaced matters least if the time runs out.
func imagesToScan(image stack.Image, config *stack.Config) (all []scannedImage) {
	add := func(ref string, replaced bool) {
		if ref != "" && !slices.ContainsFunc(all, func(known scannedImage) bool { return known.ref == ref }) {
			all = append(all, scannedImage{ref, replaced})
		}
	}
	add(image.Ref, false)
	if config == nil {
		return all
	}
	colors := []string{stack.Blue.ComposeService(), stack.Green.ComposeService()}
	for _, name := range slices.Sorted(maps.Keys(config.Services)) {
		if !slices.Contains(colors, name) {
			add(config.Services[name].Image, false)
		}
	}
	for _, name := range colors {
		add(config.Services[name].Image, image.Ref != "")
	}
	return all
}

// scan runs the operator's image scan on all images of the stack, one after the other:
// scanners take all the memory that they find. The limit of the check bounds all of them.
// An image that the deploy replaces only warns, so that what is wrong with it can be
// repaired by a deploy.
func (p *Preflight) scan(ctx context.Context, image stack.Image, facts *checks.Facts) []checks.Finding {
	command := cmp.Or(p.ScanCommand, p.Settings.ScanCommand)
	if command == "" {
		return checks.Warnf("no image scan ran: --scan names a command")
	}
	all := imagesToScan(image, facts.Config)
	var found []checks.Finding
	if facts.ConfigErr != nil {
		found = checks.Failf("the images of the stack are unknown: %v", facts.ConfigErr)
	}
	for i, one := range all {
		_, err := stack.Shell(ctx, p.Settings.ScanLimit, p.Stack.Dir, command+` "$1"`, one.ref)
		switch {
		case err != nil && ctx.Err() != nil:
			return append(found, checks.Failf("not scanned: %s: %v", refs(all[i:]), context.Cause(ctx))...)
		case err != nil && one.replaced:
			found = append(found, checks.Warnf("the scan rejects %s, which the deploy replaces: %v", one.ref, err)...)
		case err != nil:
			found = append(found, checks.Failf("the scan rejects %s: %v", one.ref, err)...)
		}
	}
	return append(found, checks.Okf("%s accepts %s", command, countImages(len(all)))...)
}

// refs lists the references of images.
func refs(images []scannedImage) string {
	names := make([]string, len(images))
	for i, one := range images {
		names[i] = one.ref
	}
	return strings.Join(names, ", ")
}

// countImages returns a number of images in words.
func countImages(n int) string {
	if n == 1 {
		return "the image"
	}
	return fmt.Sprintf("all %d images", n)
}
