package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// imageInfo is the part of docker image inspect's output that this package reads.
type imageInfo struct {
	ID          string `json:"Id"`
	RepoTags    []string
	RepoDigests []string
}

// inspectImage returns the image of a reference or an id on this host.
func (c *Compose) inspectImage(ctx context.Context, ref string) (imageInfo, error) {
	out, err := c.docker(ctx, quickLimit, "image", "inspect", ref)
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
func (c *Compose) Resolve(ctx context.Context, ref string) (Image, error) {
	found, err := c.inspectImage(ctx, ref)
	if err != nil {
		if _, pulled := c.docker(ctx, pullLimit, "pull", "-q", ref); pulled != nil {
			return Image{}, fmt.Errorf("image %s is not on this host and can't be pulled: %w", ref, pulled)
		}
		if found, err = c.inspectImage(ctx, ref); err != nil {
			return Image{}, err
		}
	}
	return Image{Ref: ref, ID: found.ID}, nil
}

// Migrate runs the image's migrations in a one-off container.
func (c *Compose) Migrate(ctx context.Context, image Image) error {
	_, err := c.migrate(ctx, image)
	return err
}

// migrate runs the stack's service migrate with an image, and returns its output.
func (c *Compose) migrate(ctx context.Context, image Image, args ...string) ([]byte, error) {
	args = append([]string{"run", "--rm", "--no-deps", "-T", "migrate"}, args...)
	return c.compose(ctx, pullLimit, []string{"IMAGE_MIGRATE=" + image.ID}, args...)
}

// Prune removes images that are no longer deployed, by their reference, unless it
// names another image by now. Docker keeps an image that a container uses.
func (c *Compose) Prune(ctx context.Context, images []Image) error {
	var errs []error
	for _, image := range images {
		found, err := c.inspectImage(ctx, image.ID)
		if err != nil {
			continue // removed already
		}
		target := image.Ref
		if !slices.Contains(found.RepoTags, target) && len(found.RepoTags) == 0 {
			target = image.ID // no tag names it
		} else if now, err := c.inspectImage(ctx, target); err != nil || now.ID != image.ID {
			continue
		}
		if _, err := c.docker(ctx, quickLimit, "image", "rm", target); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
