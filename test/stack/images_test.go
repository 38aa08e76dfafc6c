package stack

import (
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// namedImage matches a reference with a version, of any image.
var namedImage = regexp.MustCompile(`(?:image: |FROM |[\s"'(\x60])((?:[a-z0-9.-]+/)*(?:golang|static-debian\d+|traefik|postgres|redis|valkey|prometheus|alertmanager|grafana|node-exporter|redis_exporter|postgres-exporter|blackbox-exporter)):([a-z0-9][\w.-]*)`)

// port matches what follows the name of a service in an address.
var port = regexp.MustCompile(`^\d{4,5}$`)

// Every file that names an image names the version of deploy/images.yml, and every image
// of that list is used.
func TestImagesHaveTheListedVersions(t *testing.T) {
	listed := map[string]string{}
	decode(t, "images.yml", read(t, root+"/deploy/images.yml"), &listed)
	refs := slices.Collect(maps.Values(listed))

	used := map[string]bool{}
	for _, file := range filesThatNameImages(t) {
		for _, found := range namedImage.FindAllStringSubmatch(read(t, file), -1) {
			if port.MatchString(found[2]) {
				continue
			}
			ref := found[1] + ":" + found[2]
			if !slices.Contains(refs, ref) {
				t.Errorf("%s names %s, which deploy/images.yml does not list", file, ref)
			}
			used[ref] = true
		}
	}
	for name, ref := range listed {
		if !used[ref] {
			t.Errorf("no file uses %s (%s)", ref, name)
		}
	}
	// No image of the compose files escapes the pattern above.
	for _, file := range []string{"docker-compose.prod.yml", "docker-compose.dev.yml"} {
		for _, found := range regexp.MustCompile(`(?m)^ *image: ([^$\s]+)$`).FindAllStringSubmatch(read(t, filepath.Join(compose, file)), -1) {
			if !slices.Contains(refs, found[1]) {
				t.Errorf("%s: deploy/images.yml does not list %s", file, found[1])
			}
		}
	}
}

// filesThatNameImages returns the files of the repository, without those that setup makes,
// that name images to use.
func filesThatNameImages(t *testing.T) (files []string) {
	t.Helper()
	for _, name := range []string{"Dockerfile", "deploy", "docs", "scripts", "README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile"} {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir():
				if slices.Contains([]string{"secrets", "state", "backups"}, entry.Name()) {
					return filepath.SkipDir
				}
			case entry.Name() != "images.yml" && entry.Name() != ".env":
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}
