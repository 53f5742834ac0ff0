package fanout

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOnlyTheOldestTriesWhileUnreachable(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Wait = time.Second / 2
		l.fake.set("b", refuses())
		oldest := l.mustPost("/oldest")
		var others []Answer
		for i := range 5 {
			a := l.mustPost(fmt.Sprint("/", i))
			require.True(t, a.Pending)
			others = append(others, a)
		}
		require.Equal(t, time.Second/2, l.passed(), "b was out already for the others")
		l.sleep(20 * time.Second)
		require.Equal(t, seconds(0, 1, 3, 7, 15), l.times("b"))
		for _, r := range l.calls("b") {
			require.Equal(t, "/oldest", r.Target)
		}
		next := l.start.Add(31 * time.Second).UTC()
		require.Equal(t, next, *l.status(oldest.ID).Deliveries[1].NextAttempt)
		for _, a := range others {
			d := l.status(a.ID).Deliveries[1]
			require.Zero(t, d.Attempts, "waiting uses no attempt")
			require.Equal(t, next, *d.NextAttempt, "the oldest one's")
		}

		l.fake.set("b") // it is back: nobody knows until the oldest tries
		l.sleep(31*time.Second - l.passed())
		require.Equal(t, 31*time.Second, l.passed())
		var targets []string
		for i, r := range l.calls("b")[5:] {
			require.Equal(t, 31*time.Second, l.times("b")[5+i])
			targets = append(targets, r.Target)
		}
		require.Equal(t, "/oldest", targets[0])
		require.ElementsMatch(t, []string{"/oldest", "/0", "/1", "/2", "/3", "/4"}, targets)
		require.Equal(t, "done a=done b=done", l.states(others[4].ID))
		require.Equal(t, 2, l.status(others[4].ID).Deliveries[0].Attempts+l.status(others[4].ID).Deliveries[1].Attempts)
	})
}

func TestADialOfOthersWakesTheLane(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.b["a"].DialFailed()
		l.fake.set("a", refuses())
		for range 3 {
			l.mustPost("/x")
		}
		l.sleep(20 * time.Second)
		require.Equal(t, seconds(0, 1, 3, 7, 15), l.times("a"))
		l.restart("a") // at 20 s traffic got through; the oldest is due at 31 s
		l.sleep(reachPoll)
		require.Len(t, l.times("a"), 7, "the two that have waited go")
		l.sleep(time.Minute)
		require.Len(t, l.times("a"), 8, "the oldest keeps its own time")
		require.Equal(t, 31*time.Second, l.times("a")[7])
	})
}

func TestABacklogComesBackWithoutAStorm(t *testing.T) {
	const backlog = 3*laneWidth + 7
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.b["a"].DialFailed()
		l.fake.set("a", refuses(), ok().in(time.Second))
		for i := range backlog {
			l.mustPost(fmt.Sprintf("/%04d", i))
		}
		l.sleep(0)
		require.Len(t, l.calls("a"), 1)
		l.fake.set("a", ok().in(time.Second))
		l.sleep(time.Second) // the oldest tries: its dial succeeds
		l.sleep(10 * time.Second)
		require.Len(t, l.calls("a"), 1+backlog)
		require.Equal(t, laneWidth, l.fake.most["a"])
		calls := l.calls("a")[1:]
		for n, r := range calls { // oldest first, by the width of a lane
			var i int
			_, err := fmt.Sscanf(r.Target, "/%d", &i)
			require.NoError(t, err)
			require.InDelta(t, i, n, laneWidth)
		}
		require.Equal(t, []Count{{Pool: "users"}}, l.engine.Counts())
	})
}

func TestOneDeadBackendDoesNotHoldUpTheOthers(t *testing.T) {
	bubble(t, []string{"a", "b"}, func(l *lab) {
		l.plan.Ack = AckFirst
		l.fake.set("b", hangs())
		for range 2 * laneWidth {
			require.Equal(t, "a", l.mustPost("/x").Backend)
		}
		require.Zero(t, l.passed())
		l.sleep(0)
		require.Equal(t, laneWidth, l.fake.most["b"])
	})
}

func TestWhenTheOldestIsSettledTheNextOneTries(t *testing.T) {
	bubble(t, []string{"a"}, func(l *lab) {
		l.plan.Wait = 0
		l.fake.set("a", refuses())
		short := *l.plan
		short.MaxAge = 10100 * ms // not at a poll
		normal := l.plan
		l.plan = &short
		l.mustPost("/oldest")
		l.plan = normal
		l.sleep(0)
		next := l.mustPost("/next")
		l.sleep(9 * time.Second)
		require.Zero(t, l.status(next.ID).Deliveries[0].Attempts)
		l.sleep(1100 * ms)
		require.Equal(t, 1, l.status(next.ID).Deliveries[0].Attempts)
	})
}
