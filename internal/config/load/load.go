// Package load reads a configuration: it finds the file, decodes it strictly,
// merges environment variables and flags, and has it judged. It is the only
// package that knows viper and YAML.
//
// Viper finds and reads the file and decides which of file, environment and
// flag wins. The document itself never passes through viper's maps, which would
// change the case of the user's keys: it is decoded here, node by node, so that
// every problem has its path and its line.
package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/afero"
	"github.com/spf13/viper"

	"lb/internal/config"
)

// FileName is the name of the file that is looked for when none is given.
const FileName = "lb.yaml"

// MaxFileSize is the size of the largest file that is read, in bytes.
const MaxFileSize = 4 << 20

// Options are the parts of a load that do not come from the file. The zero
// value is what the daemon uses.
type Options struct {
	// Overrides sets scalars outside lists by their path, such as
	// "admin.address", to what the command line said. They win over the
	// environment, which wins over the file.
	Overrides map[string]string
	// Dirs are the directories searched for FileName when no file is given,
	// in order. Default: the working directory and /etc/lb.
	Dirs []string
}

func (o Options) dirs() []string {
	if o.Dirs == nil {
		return []string{".", "/etc/lb"}
	}
	return o.Dirs
}

// ErrNoConfig is the error of Find and File when there is neither a file nor an
// environment profile.
var ErrNoConfig = errors.New("no configuration")

// Find returns the file that File would read: path itself unless it is empty,
// else the first FileName in the directories. It returns "" if there is none
// and BACKEND_POOL asks for the environment profile, and ErrNoConfig, wrapped
// in a text that names the ways out, if that is not set either. Any other error
// says why the file cannot be read.
func Find(path string, opts Options) (string, error) {
	found, err := finderFor(path, opts).Find(afero.NewOsFs())
	switch {
	case err != nil:
		return "", err
	case len(found) > 0:
		return found[0], nil
	case os.Getenv(poolEnv) != "":
		return "", nil
	}
	var looked []string
	for _, dir := range opts.dirs() {
		looked = append(looked, display(dir))
	}
	return "", fmt.Errorf("%w: there is no %s; give a file with -c FILE, or the backends with %s=host:port,host:port",
		ErrNoConfig, strings.Join(looked, " and no "), poolEnv)
}

// display names FileName in dir as a user would.
func display(dir string) string {
	if dir == "." {
		return "./" + FileName
	}
	return filepath.Join(dir, FileName)
}

// finder tells viper which file to read: the one that is named, else FileName in
// the first directory that has one. Viper's own finder would also take lb.json,
// or the program itself.
type finder struct {
	path string
	dirs []string
}

func finderFor(path string, opts Options) finder { return finder{path: path, dirs: opts.dirs()} }

// Find implements viper.Finder. Its error says why the file that was found
// cannot be read, before viper reads all of it.
func (f finder) Find(fsys afero.Fs) ([]string, error) {
	if f.path != "" {
		return []string{f.path}, readable(fsys, f.path)
	}
	for _, dir := range f.dirs {
		name := filepath.Join(dir, FileName)
		if err := readable(fsys, name); !errors.Is(err, fs.ErrNotExist) {
			return []string{name}, err
		}
	}
	return nil, nil
}

// File reads the configuration from the file at path or, if path is empty, from
// where Find finds it, or from the environment profile. Environment variables
// and opts are merged, defaults filled in, everything is judged.
//
// The warnings are about what is allowed but hardly meant. The error is
// config.Problems when something was read but is wrong, with every problem at
// once; any other error says why nothing could be read.
func File(path string, opts Options) (*config.Config, []config.Problem, error) {
	file, err := Find(path, opts)
	if err != nil {
		return nil, nil, err
	}
	v, text := newViper(finderFor(path, opts), opts)
	if file == "" {
		return fromEnvironment(os.Getenv(poolEnv), v, opts)
	}
	if err := v.ReadInConfig(); err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", file, cause(err))
	}
	return newDecoder().text(filepath.Base(file), text.data, v, opts)
}

// Bytes reads the configuration from the text of a file, as File does. name is
// what problems about the whole text call it.
func Bytes(name string, data []byte, opts Options) (*config.Config, []config.Problem, error) {
	v, _ := newViper(finder{}, opts)
	return newDecoder().text(name, data, v, opts)
}

// readable says why a file cannot be read.
func readable(fsys afero.Fs, file string) error {
	info, err := fsys.Stat(file)
	switch {
	case err != nil:
		return fmt.Errorf("cannot read %s: %w", file, cause(err))
	case info.IsDir():
		return fmt.Errorf("cannot read %s: it is a directory; give the file in it", file)
	case info.Mode()&fs.ModeDevice != 0:
		return fmt.Errorf("cannot read %s: it is a device", file)
	case info.Size() > MaxFileSize:
		return fmt.Errorf("cannot read %s: it has %d bytes, and the most is %s", file, info.Size(), config.Size(MaxFileSize))
	}
	return nil
}

// cause strips the operation and the path from a file error: the message names
// the file already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// newViper returns a viper that finds and reads the file, binds one environment
// variable to each scalar, and holds the overrides. The text that it read is in
// the second result.
func newViper(f finder, opts Options) (*viper.Viper, *text) {
	t := new(text)
	v := viper.NewWithOptions(viper.WithFinder(f), viper.WithDecoderRegistry(t))
	v.SetConfigType("yaml")
	for _, s := range scalars {
		v.MustBindEnv(s.path, s.env)
	}
	for path, value := range opts.Overrides {
		v.Set(path, flag(value))
	}
	return v, t
}

// text is viper's codec: it takes the file's text and puts nothing into viper's
// map.
type text struct{ data []byte }

// Decoder implements viper.DecoderRegistry.
func (t *text) Decoder(string) (viper.Decoder, error) { return t, nil }

// Decode implements viper.Decoder.
func (t *text) Decode(data []byte, _ map[string]any) error {
	t.data = data
	return nil
}
