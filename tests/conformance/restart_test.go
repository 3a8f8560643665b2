package conformance

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	driverpb "chv.invalid/proto/driver"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestSameStartTwiceIsOneMachine(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	answers := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := h.driver.StartTask(h.context(), &driverpb.StartTaskRequest{Task: one.config})
			answers <- err
		}()
	}
	for range 2 {
		if err := <-answers; err != nil {
			t.Errorf("StartTask: %v", err)
		}
	}
	pid := h.pid(one)
	h.start(one)
	if again := h.pid(one); again != pid {
		t.Errorf("another start of the same id made machine %d beside %d", again, pid)
	}
	if count := vmms(t); count != 1 {
		t.Errorf("%d machines run, expected 1", count)
	}
}

// The agent's connection breaks while a machine starts; the next agent starts the same task again.
func TestStartWhoseCallerWentAwayIsOneMachine(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	for _, patience := range []time.Duration{20, 100, 200} {
		ctx, cancel := context.WithTimeout(context.Background(), patience*time.Millisecond)
		_, _ = h.driver.StartTask(ctx, &driverpb.StartTaskRequest{Task: one.config})
		cancel()
	}
	h.start(one)
	h.pid(one)
	if count := vmms(t); count != 1 {
		t.Errorf("%d machines run, expected 1", count)
	}
}

// The plugin died inside StartTask: the next one gets the same start, and knows nothing of it but what is on disk.
func TestStartAgainAfterThePluginsDeathIsOneMachine(t *testing.T) {
	first := serving(t)
	one := first.prepare("web", "tick")
	first.start(one)
	first.murder()
	second := serving(t)
	second.start(one)
	second.pid(one)
	if count := vmms(t); count != 1 {
		t.Errorf("%d machines run, expected 1", count)
	}
	second.stop(one, 10*time.Second)
}

// Nomad does not keep the driver's config over a restart of the agent, and after a reattach sends no plugin block.
func TestRecoverNeedsNeitherBlock(t *testing.T) {
	first := serving(t)
	one := first.prepare("web", "tick")
	handle := first.start(one)
	pid := first.pid(one)
	leftOver := first.socketDir()
	first.murder()

	second := launch(t)
	if _, err := os.Stat(leftOver); !os.IsNotExist(err) {
		t.Errorf("the dead plugin's %s is still there (%v)", leftOver, err)
	}
	events := second.events()
	second.recover(one, handle)
	if again := second.pid(one); again != pid {
		t.Errorf("recovered machine %d, expected %d", again, pid)
	}
	checkRunning(t, second.inspect(one), one.config)
	before := len(one.console.String())
	eventually(t, 5*time.Second, "the console goes on", func() bool { return len(one.console.String()) > before })
	done := second.wait(one)
	second.stop(one, 10*time.Second)
	if answer := second.ended(done); answer.GetResult().GetExitCode() != 0 {
		t.Errorf("after a graceful stop: %v", answer)
	}
	waitFor(t, events, 5*time.Second, "an event of the stop", func(event *driverpb.DriverTaskEvent) bool {
		return strings.Contains(event.GetMessage(), "power button")
	})
	if err := second.destroy(one); err != nil {
		t.Errorf("DestroyTask: %v", err)
	}
}

func (h *host) recover(one *task, handle *driverpb.TaskHandle) {
	h.t.Helper()
	kept := proto.Clone(handle).(*driverpb.TaskHandle)
	kept.Config.MsgpackDriverConfig = nil
	h.t.Cleanup(func() { _ = h.destroy(one) })
	began := time.Now()
	if _, err := h.driver.RecoverTask(h.context(), &driverpb.RecoverTaskRequest{Handle: kept}); err != nil {
		h.t.Fatalf("RecoverTask: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		h.t.Errorf("RecoverTask took %v", took)
	}
}

func TestExitWhileNobodyWatchedIsReported(t *testing.T) {
	first := serving(t)
	one := first.prepare("batch", "sleep=1 exit=5")
	handle := first.start(one)
	pid := first.pid(one)
	first.murder()
	eventually(t, 10*time.Second, "the machine ends", func() bool { return !alive(pid) })
	second := serving(t)
	second.recover(one, handle)
	if answer := second.ended(second.wait(one)); answer.GetResult().GetExitCode() != 5 {
		t.Errorf("WaitTask: %v, expected exit code 5", answer)
	}
	checkExited(t, second.inspect(one), 5)
}

// After a refused RecoverTask, DestroyTask with the old id is all that Nomad does about the old machine.
func TestDestroyEndsAMachineThatWasNotRecovered(t *testing.T) {
	first := serving(t)
	one := first.prepare("web", "tick")
	handle := first.start(one)
	pid := first.pid(one)
	first.murder()
	second := serving(t)
	broken := proto.Clone(handle).(*driverpb.TaskHandle)
	broken.DriverState = []byte("of another driver")
	_, err := second.driver.RecoverTask(second.context(), &driverpb.RecoverTaskRequest{Handle: broken})
	if code := status.Code(err); code == codes.OK || code == codes.Unavailable || code == codes.Canceled {
		t.Errorf("RecoverTask with a foreign handle: %v", err)
	}
	for range 2 {
		if err := second.destroy(one); err != nil {
			t.Errorf("DestroyTask: %v", err)
		}
	}
	eventually(t, 5*time.Second, "the old machine is gone", func() bool { return !alive(pid) })
}
