package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"lb/internal/admin"
	"lb/internal/config/diff"
	"lb/internal/outcome"
	"lb/internal/store"
)

// ConfigVersions returns configurations that have served, the newest first.
func (a *App) ConfigVersions(ctx context.Context, before int64, limit int) ([]admin.ConfigVersion, error) {
	versions, err := a.store.ConfigVersions(ctx, before, limit)
	if err != nil {
		return nil, unreadable("the versions cannot be read", err)
	}
	page := make([]admin.ConfigVersion, len(versions))
	for i, v := range versions {
		page[i] = a.shownVersion(v)
	}
	return page, nil
}

// ConfigVersion returns one of them with its text.
func (a *App) ConfigVersion(ctx context.Context, id int64) (admin.ConfigVersion, error) {
	v, err := a.version(ctx, id)
	if err != nil {
		return admin.ConfigVersion{}, err
	}
	return a.shownVersion(v), nil
}

func (a *App) version(ctx context.Context, id int64) (store.ConfigVersion, error) {
	v, err := a.store.ConfigVersion(ctx, id)
	switch {
	case errors.Is(err, store.ErrNoVersion):
		return v, &outcome.Error{Code: outcome.ConfigVersionNotFound,
			Detail: fmt.Sprintf("there is no version %d, or not any more: lb config history lists them", id)}
	case err != nil:
		return v, unreadable("the version cannot be read", err)
	}
	return v, nil
}

func (a *App) shownVersion(v store.ConfigVersion) admin.ConfigVersion {
	return admin.ConfigVersion{
		ID: v.ID, At: shown(v.At), By: v.By, Source: v.Source, Generation: v.Generation,
		Serving: v.ID == a.serving.Load(), Document: string(v.Document),
	}
}

// DiffConfig returns what the version to has other than the version from; to 0
// is what serves now.
func (a *App) DiffConfig(ctx context.Context, from, to int64) (admin.Changes, error) {
	older, err := a.readVersion(ctx, from)
	if err != nil {
		return admin.Changes{}, err
	}
	newer := a.applied.Load().Loaded
	if to != 0 {
		if newer, err = a.readVersion(ctx, to); err != nil {
			return admin.Changes{}, err
		}
	}
	return shownChanges(diff.Between(older.Config, newer.Config)), nil
}

// readVersion reads a version as a configuration.
func (a *App) readVersion(ctx context.Context, id int64) (Loaded, error) {
	v, err := a.version(ctx, id)
	if err != nil {
		return Loaded{}, err
	}
	l, err := a.options.Parse(fmt.Sprintf("version %d", id), v.Document)
	if err != nil {
		return Loaded{}, invalid(fmt.Sprintf("version %d", id), err)
	}
	return l, nil
}

// Rollback puts the text of a version into the configuration's file, and goes by
// it. With an error the file has what it had.
func (a *App) Rollback(ctx context.Context, id int64, by string) (admin.Reloaded, error) {
	if err := a.takeTurnToReload(ctx); err != nil {
		return admin.Reloaded{}, err
	}
	defer func() { <-a.operating }()
	back, err := a.readVersion(ctx, id)
	if err != nil {
		return admin.Reloaded{}, err
	}
	if err := a.changeable(back.Config); err != nil {
		return admin.Reloaded{}, invalid(fmt.Sprintf("version %d", id), err)
	}
	now := a.applied.Load()
	if now.Document == nil {
		return admin.Reloaded{}, notWritable(errors.New("the configuration comes from the environment"))
	}
	was, err := os.ReadFile(now.Source)
	if err != nil {
		return admin.Reloaded{}, notWritable(err)
	}
	if err := replaceFile(now.Source, back.Document); err != nil {
		return admin.Reloaded{}, notWritable(err)
	}
	done, err := a.reload(ctx, by)
	if err != nil {
		return done, errors.Join(err, replaceFile(now.Source, was))
	}
	return done, nil
}

func notWritable(err error) error {
	return &outcome.Error{
		Code: outcome.ConfigNotWritable, Detail: "nothing has changed, because the configuration's file cannot be replaced: " + err.Error(), Err: err,
	}
}

// replaceFile gives a file another content, at once and with the mode that it
// has: who reads it finds all of the one or all of the other.
func replaceFile(path string, content []byte) (err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(info.Mode().Perm()), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir has the names in a directory written to the disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, fs.ErrInvalid) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some file systems have no such thing
	}
	return errors.Join(err, dir.Close())
}

// sameConfig reports whether two configurations say the same.
func sameConfig(a, b Loaded) bool { return reflect.DeepEqual(a.Config, b.Config) }
