package app

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"strconv"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/outcome"
)

// Logs are where lb writes: what it does, and one line a request.
type Logs struct {
	// Main is the operational log.
	Main   *zap.Logger
	level  zap.AtomicLevel
	access accessLog
	buffer *zapcore.BufferedWriteSyncer // nil when access lines are written at once
}

// NewLogs returns logs in the configured format: the operational log on
// stderr, the access log on stdout. Close flushes them.
func NewLogs(c config.Log, stdout, stderr io.Writer) (*Logs, error) {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	enc := zap.NewProductionEncoderConfig()
	enc.TimeKey, enc.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	encoder, accessEncoder := zapcore.NewJSONEncoder(enc), zapcore.Encoder(nil)
	console := c.Format == "console"
	if console {
		enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		enc.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(enc)
		accessEncoder = zapcore.NewConsoleEncoder(zapcore.EncoderConfig{
			TimeKey: "time", EncodeTime: enc.EncodeTime, MessageKey: "msg", LineEnding: zapcore.DefaultLineEnding,
		})
	} else {
		accessEncoder = zapcore.NewJSONEncoder(zapcore.EncoderConfig{
			TimeKey: "time", EncodeTime: zapcore.RFC3339NanoTimeEncoder, LineEnding: zapcore.DefaultLineEnding,
		})
	}
	l := &Logs{level: zap.NewAtomicLevelAt(level)}
	l.Main = zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(stderr)), l.level))
	if c.Access.Enabled {
		// Lines leave in blocks or after a second: a write for each would be
		// the dearest thing that lb does for a request.
		l.buffer = &zapcore.BufferedWriteSyncer{WS: zapcore.AddSync(stdout), FlushInterval: time.Second}
		l.access = accessLog{
			zap:     zap.New(zapcore.NewCore(accessEncoder, l.buffer, zapcore.InfoLevel)),
			console: console, sample: c.Access.Sample,
		}
	}
	return l, nil
}

// SetLevel changes what the operational log has, to debug, info, warn or error.
func (l *Logs) SetLevel(text string) {
	if level, err := zapcore.ParseLevel(text); err == nil { // it was validated
		l.level.SetLevel(level)
	}
}

// Close writes what is buffered.
func (l *Logs) Close() {
	if l.buffer != nil {
		_ = l.buffer.Stop()
	}
	_ = l.Main.Sync() // fails on terminals, where nothing is buffered
}

// netLog takes what net/http prints. Nearly all of it is about a single
// connection and a client's doing; but for two things.
func netLog(l *zap.Logger) *log.Logger { return log.New(netLogWriter{l}, "", 0) }

type netLogWriter struct{ *zap.Logger }

func (w netLogWriter) Write(p []byte) (int, error) {
	level := zap.DebugLevel
	switch {
	case bytes.HasPrefix(p, []byte("http: panic serving")):
		level = zap.ErrorLevel
	case bytes.HasPrefix(p, []byte("http: Accept error")): // out of descriptors
		level = zap.WarnLevel
	}
	w.Log(level, string(bytes.TrimSpace(p)))
	return len(p), nil
}

// accessLog writes one line a request. The zero value writes nothing.
type accessLog struct {
	zap     *zap.Logger
	console bool
	sample  float64
}

// write logs a finished request. What a client sent is cut to a bounded length;
// the encoder escapes it.
func (a *accessLog) write(x *exchange.Exchange) {
	if a.zap == nil {
		return
	}
	code := codeOf(x)
	if code == "" && a.sample < 1 && rand.Float64() >= a.sample {
		return
	}
	path, backend := x.Target.RawPath, ""
	if x.Backend != nil {
		backend = x.Backend.ID
	}
	var routeName, poolName string
	if x.Route != nil {
		routeName = x.Route.Name
		if x.Route.Pool != nil {
			poolName = x.Route.Pool.Name
		}
	}
	ms := float64(x.Took.Microseconds()) / 1000
	if a.console {
		line := fmt.Sprintf("%d %s %s", x.Status, printable(cut(x.Method, 32)), printable(cut(path, 256)))
		if backend != "" {
			line += fmt.Sprintf("  %s, attempt %d", backend, x.Attempts)
		}
		if x.FanoutID != "" {
			line += fmt.Sprintf("  %s backends, fan-out %s", x.Acked, x.FanoutID)
		}
		if code != "" {
			line += "  " + string(code)
		}
		a.zap.Info(line + fmt.Sprintf("  %.1f ms", ms))
		return
	}
	fields := []zap.Field{
		zap.String("request_id", x.Forward.RequestID),
		zap.String("client", clientText(x)),
		zap.String("method", cut(x.Method, 32)),
		zap.String("host", cut(x.Host, 256)),
		zap.String("path", cut(path, 2048)),
		zap.Int("status", x.Status),
		zap.Int64("bytes_in", x.BytesIn),
		zap.Int64("bytes_out", x.BytesOut),
		zap.Float64("duration_ms", ms),
		zap.String("route", routeName),
		zap.String("pool", poolName),
		zap.String("backend", backend),
		zap.Int("attempts", x.Attempts),
		zap.Float64("queue_ms", float64(x.Queued.Microseconds())/1000),
		zap.Uint64("generation", x.Snapshot.Generation),
		zap.String("code", string(code)),
	}
	if x.FanoutID != "" {
		fields = append(fields, zap.String("fanout", x.FanoutID), zap.String("acked", x.Acked))
	}
	a.zap.Info("", fields...)
}

// codeOf names what went wrong, empty if nothing did.
func codeOf(x *exchange.Exchange) outcome.Code {
	switch {
	case x.Outcome.Class == outcome.ClientGone:
		return outcome.ClientClosed
	case x.Failure != nil:
		return x.Failure.Code
	case x.Outcome.Class == outcome.Cut, x.Outcome.Class == outcome.Withdrawn:
		return outcome.CodeOf(x.Outcome.Class)
	}
	return ""
}

// clientText names the client, empty on a unix socket.
func clientText(x *exchange.Exchange) string {
	if !x.Client.IsValid() {
		return ""
	}
	return x.Client.String()
}

// printable escapes what would do something to a terminal.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit]
}
