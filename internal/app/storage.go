package app

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.uber.org/zap"

	"lb/internal/config"
	"lb/internal/fanout"
	"lb/internal/outcome"
	"lb/internal/store"
)

// window is about how many unsettled writes are held in memory, and windowBytes
// how many bytes of them; the others are in the journal alone. Ten thousand
// with a body of 1 KiB each take some 30 MiB.
const (
	window      = 10_000
	windowBytes = 64 << 20
)

// openStorage opens the store, and the journal of the fan-outs in it.
//
// A damaged file is no reason to refuse reads: the daemon starts, and whatever
// needs the file is told so.
func (a *App) openStorage(ctx context.Context, c config.Storage) (fanout.Options, error) {
	deliveries, err := a.openFile(ctx, c)
	if !errors.Is(err, store.ErrDamaged) {
		return deliveries, err
	}
	a.log.Error("the storage is damaged: fan-outs and operators' changes are refused until lb is restarted with another file; see lb salvage",
		zap.Error(err))
	if a.store != nil {
		_ = a.store.Close() // nothing was written
	}
	a.damaged, a.journal = err, nil
	if a.store, err = store.Open(""); err != nil {
		return fanout.Options{}, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return fanout.Options{Journal: fanout.Unavailable{Err: a.damaged}}, nil
}

// openFile opens what storage.path names, and looks whether it can be read.
func (a *App) openFile(ctx context.Context, c config.Storage) (fanout.Options, error) {
	failed := func(err error) (fanout.Options, error) {
		return fanout.Options{}, fmt.Errorf("%w (storage.path): %w", ErrStorage, err)
	}
	var err error
	if a.store, err = store.Open(c.Path); err != nil {
		return failed(err)
	}
	if c.Path == "" {
		return fanout.Options{Journal: fanout.NewMemory()}, nil
	}
	key, err := storageKey(c.KeyEnv)
	if err != nil {
		return fanout.Options{}, err
	}
	if key == nil {
		a.log.Info("stored writes are not encrypted: only the owner of the file can read them", zap.String("path", c.Path))
	}
	if a.journal, err = a.store.Journal(store.JournalOptions{Key: key, Failing: a.storageFails}); err != nil {
		return failed(err)
	}
	if _, err := a.store.OperatorStates(ctx); err != nil {
		return failed(err)
	}
	return fanout.Options{Journal: a.journal, Window: window, WindowBytes: windowBytes}, nil
}

// storageFails logs that the storage has begun to fail, or does so no more.
func (a *App) storageFails(err error) {
	if err == nil {
		a.log.Info("the storage takes writes again")
		return
	}
	a.log.Error("the storage takes no writes: fan-outs get 503 storage_unavailable", zap.Error(err))
}

// storageKey returns the key that the variable of that name holds, nil without
// a name.
func storageKey(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	key, err := config.ParseKey(os.Getenv(name))
	if err != nil {
		return nil, fmt.Errorf("%w (storage.key_env): the variable %s %w", ErrStorage, name, err)
	}
	return key[:], nil
}

// whole returns an error while the storage is damaged: then nothing that an
// operator says would be kept.
func (a *App) whole() error {
	if a.damaged == nil {
		return nil
	}
	return &outcome.Error{
		Code: outcome.StorageUnavailable, Detail: "nothing has changed: the storage is damaged", Err: a.damaged,
	}
}

// storageUp reports whether what must outlive the process is being kept.
func (a *App) storageUp() bool {
	return a.damaged == nil && (a.journal == nil || a.journal.Up())
}
