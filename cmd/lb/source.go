package main

import (
	"fmt"
	"os"
	"path/filepath"

	"lb/internal/app"
	"lb/internal/config"
	"lb/internal/config/load"
)

// source is where a configuration comes from, again at each reload.
type source struct {
	file    string // "" where the environment says it all
	options load.Options
	made    *config.Config // not nil: by this program itself
}

// findSource finds the file that path names, or the usual one, or none where
// the environment has it all.
func findSource(path string, options load.Options) (*source, error) {
	file, err := load.Find(path, options)
	if err != nil {
		return nil, err
	}
	if file != "" {
		if file, err = filepath.Abs(file); err != nil { // rollback writes there
			return nil, err
		}
	}
	return &source{file: file, options: options}, nil
}

func (s *source) String() string {
	switch {
	case s.made != nil:
		return "demo"
	case s.file == "":
		return "environment"
	}
	return s.file
}

// load reads the configuration.
func (s *source) load() (app.Loaded, error) {
	switch {
	case s.made != nil:
		return loaded(s.made, nil, nil)
	case s.file == "":
		return loaded(load.File("", s.options))
	}
	document, err := os.ReadFile(s.file)
	if err != nil {
		return app.Loaded{}, fmt.Errorf("cannot read the configuration: %w", err)
	}
	return s.parse(filepath.Base(s.file), document)
}

// parse reads a text as load would if it stood in the file.
func (s *source) parse(name string, document []byte) (app.Loaded, error) {
	l, err := loaded(load.Bytes(name, document, s.options))
	l.Document, l.Source = document, s.file
	return l, err
}

func loaded(c *config.Config, warnings []config.Problem, err error) (app.Loaded, error) {
	if err != nil {
		return app.Loaded{}, err
	}
	return app.Loaded{Config: c, Effective: func() ([]byte, error) { return load.Effective(c) }, Warnings: warnings}, nil
}
