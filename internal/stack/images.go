package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Images are the images on this host.
type Images struct{ Stack *Stack }

// An Image is a reference and the id that it had when it was resolved: a tag can
// be moved later.
type Image struct {
	Ref string `json:"ref"`
	// ID is the engine's digest of the contents.
	ID string `json:"id"`
}

// imageInfo is the part of docker image inspect's output that this package reads.
type imageInfo struct {
	ID          string `json:"Id"`
	RepoTags    []string
	RepoDigests []string
}

// inspectImage returns the image of a reference or an id on this host.
func (i Images) inspectImage(ctx context.Context, ref string) (imageInfo, error) {
	out, err := i.Stack.Docker(ctx, QuickLimit, "image", "inspect", ref)
	if err != nil {
		return imageInfo{}, err
	}
	var found []imageInfo
	if err := json.Unmarshal(out, &found); err != nil {
		return imageInfo{}, fmt.Errorf("docker image inspect %s: %w", ref, err)
	}
	if len(found) != 1 {
		return imageInfo{}, fmt.Errorf("docker image inspect %s: found %d images, want 1", ref, len(found))
	}
	return found[0], nil
}

// Resolve finds an image on this host, or pulls it.
func (i Images) Resolve(ctx context.Context, ref string) (Image, error) {
	found, err := i.inspectImage(ctx, ref)
	if err != nil {
		if _, pulled := i.Stack.Docker(ctx, pullLimit, "pull", "-q", ref); pulled != nil {
			return Image{}, fmt.Errorf("image %s is not on this host and can't be pulled: %w", ref, pulled)
		}
		if found, err = i.inspectImage(ctx, ref); err != nil {
			return Image{}, err
		}
	}
	return Image{Ref: ref, ID: found.ID}, nil
}

// Migrate runs the stack's service migrate with an image, for at most limit, and
// returns its output.
func (i Images) Migrate(ctx context.Context, image Image, limit time.Duration, args ...string) ([]byte, error) {
	args = append([]string{"run", "--rm", "--no-deps", "-T", "migrate"}, args...)
	return i.Stack.Compose(ctx, limit, []string{"IMAGE_MIGRATE=" + image.ID}, args...)
}

// Prune removes images that are no longer deployed, by their reference, unless it
// names another image by now. Docker keeps an image that a container uses.
func (i Images) Prune(ctx context.Context, images []Image) error {
	var errs []error
	for _, image := range images {
		found, err := i.inspectImage(ctx, image.ID)
		if err != nil {
			continue // removed already
		}
		target := image.Ref
		if !slices.Contains(found.RepoTags, target) && len(found.RepoTags) == 0 {
			target = image.ID // no tag names it
		} else if now, err := i.inspectImage(ctx, target); err != nil || now.ID != image.ID {
			continue
		}
		if _, err := i.Stack.Docker(ctx, QuickLimit, "image", "rm", target); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pinnedRef returns the reference of an image for .env. A tag can be moved, so the
// reference has the digest where there is one; if the tag was already moved, it is
// the image's id.
func (i Images) pinnedRef(ctx context.Context, image Image) (string, error) {
	if strings.Contains(image.Ref, "@") || strings.HasPrefix(image.Ref, "sha256:") {
		return image.Ref, nil
	}
	found, err := i.inspectImage(ctx, image.Ref)
	if err != nil || found.ID != image.ID {
		if found, err = i.inspectImage(ctx, image.ID); err != nil {
			return "", fmt.Errorf("%s is no longer on this host: %w", image.Ref, err)
		}
		return image.ID, nil
	}
	repository, _ := splitRef(image.Ref)
	for _, digest := range found.RepoDigests {
		if name, sum, ok := strings.Cut(digest, "@"); ok && name == repository {
			return image.Ref + "@" + sum, nil
		}
	}
	return image.Ref, nil
}

// splitRef splits a reference into repository and tag. A colon before a slash is
// a port's.
func splitRef(ref string) (repository, tag string) {
	colon := strings.LastIndex(ref, ":")
	if colon < 0 || strings.Contains(ref[colon:], "/") {
		return ref, ""
	}
	return ref[:colon], ref[colon+1:]
}
