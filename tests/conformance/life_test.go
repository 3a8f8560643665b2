package conformance

import (
	"context"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	driverpb "chv.invalid/proto/driver"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestTaskLivesAndIsStopped(t *testing.T) {
	h := serving(t)
	events := h.events()
	one := h.prepare("web", "tick")
	handle := h.start(one)
	if handle.GetVersion() < 1 || handle.GetState() != driverpb.TaskState_RUNNING || len(handle.GetDriverState()) == 0 {
		t.Errorf("handle: version %d state %v, %d bytes of driver state",
			handle.GetVersion(), handle.GetState(), len(handle.GetDriverState()))
	}
	if !proto.Equal(handle.GetConfig(), one.config) {
		t.Errorf("the handle's config is not the request's:\n%v\n%v", handle.GetConfig(), one.config)
	}
	for _, word := range []string{"machine started", "cores"} {
		event := waitFor(t, events, 5*time.Second, "event "+word, func(event *driverpb.DriverTaskEvent) bool {
			return strings.Contains(event.GetMessage(), word)
		})
		if event.GetTaskId() != one.config.GetId() || event.GetAllocId() != one.config.GetAllocId() ||
			event.GetTaskName() != "web" || event.GetTimestamp() == nil {
			t.Errorf("event %v", event)
		}
	}
	one.says(t, "chv test guest: ready")
	one.says(t, "tick 2")
	checkRunning(t, h.inspect(one), one.config)

	waits := []<-chan waited{h.wait(one), h.wait(one), h.wait(one)}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := h.driver.WaitTask(ctx, &driverpb.WaitTaskRequest{TaskId: one.config.GetId()})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a caller that does not wait for long: %v", err)
	}
	time.Sleep(300 * time.Millisecond)
	for _, done := range waits {
		if len(done) > 0 {
			t.Fatalf("WaitTask answers while the machine runs: %v", <-done)
		}
	}
	h.stop(one, 10*time.Second)
	for _, done := range append(waits, h.wait(one)) {
		answer := h.ended(done)
		if answer.GetResult().GetExitCode() != 0 || answer.GetResult().GetSignal() != 0 || answer.GetErr() != "" {
			t.Errorf("after a graceful stop: %v", answer)
		}
	}
	one.says(t, "power button")
	checkExited(t, h.inspect(one), 0)

	// Nomad repeats itself when an answer is lost.
	h.stop(one, time.Second)
	for range 2 {
		if err := h.destroy(one); err != nil {
			t.Errorf("DestroyTask: %v", err)
		}
	}
	h.stop(one, time.Second)
	if got := <-h.wait(one); status.Code(got.err) != codes.NotFound {
		t.Errorf("WaitTask of a destroyed task: %v", got)
	}
	h.mustEnd()
}

func checkRunning(t *testing.T, got *driverpb.InspectTaskResponse, config *driverpb.TaskConfig) {
	t.Helper()
	if got.GetTask() == nil || got.GetTask().GetResult() == nil || got.GetDriver() == nil {
		t.Fatalf("the client panics on InspectTask's answer: %v", got)
	}
	running := got.GetTask()
	if running.GetId() != config.GetId() || running.GetName() != config.GetName() ||
		running.GetState() != driverpb.TaskState_RUNNING {
		t.Errorf("InspectTask: %v", running)
	}
	if running.GetStartedAt() == nil || time.Since(running.GetStartedAt().AsTime()).Abs() > time.Minute {
		t.Errorf("started at %v", running.GetStartedAt())
	}
	if running.GetCompletedAt() == nil || running.GetCompletedAt().GetSeconds() != notSet {
		t.Errorf("a running task was completed at %v", running.GetCompletedAt())
	}
}

func checkExited(t *testing.T, got *driverpb.InspectTaskResponse, code int32) {
	t.Helper()
	ended := got.GetTask()
	if ended.GetState() != driverpb.TaskState_EXITED || ended.GetResult().GetExitCode() != code {
		t.Errorf("InspectTask after the end: %v", ended)
	}
	if ended.GetCompletedAt() == nil || ended.GetCompletedAt().AsTime().Before(ended.GetStartedAt().AsTime()) ||
		time.Since(ended.GetCompletedAt().AsTime()).Abs() > time.Minute {
		t.Errorf("started at %v, completed at %v", ended.GetStartedAt(), ended.GetCompletedAt())
	}
}

func TestExitCodeIsTheGuests(t *testing.T) {
	h := serving(t)
	one := h.prepare("batch", "say=hello exit=7")
	h.start(one)
	answer := h.ended(h.wait(one))
	if answer.GetResult().GetExitCode() != 7 || answer.GetResult().GetSignal() != 0 {
		t.Errorf("WaitTask: %v", answer)
	}
	one.says(t, "say hello")
	checkExited(t, h.inspect(one), 7)
}

func TestPanicIsCodeOneAndAReason(t *testing.T) {
	h := serving(t)
	one := h.prepare("batch", "panic")
	h.start(one)
	answer := h.ended(h.wait(one))
	if answer.GetResult().GetExitCode() != 1 || !strings.Contains(answer.GetErr(), "panic") {
		t.Errorf("WaitTask: %v", answer)
	}
}

func TestGuestThatIgnoresTheButtonIsForcedOff(t *testing.T) {
	h := serving(t)
	one := h.prepare("deaf", "ignore-acpi")
	h.start(one)
	one.says(t, "chv test guest: ready")
	began := time.Now()
	h.stop(one, time.Second)
	if took := time.Since(began); took < time.Second || took > 7*time.Second {
		t.Errorf("StopTask with a timeout of 1 s took %v", took)
	}
	answer := h.ended(h.wait(one))
	if answer.GetResult().GetExitCode() != 137 || answer.GetErr() == "" {
		t.Errorf("WaitTask: %v", answer)
	}
}

func TestSignals(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	h.start(one)
	done := h.wait(one)
	one.says(t, "tick 1")
	signal := func(name string) error {
		_, err := h.driver.SignalTask(h.context(), &driverpb.SignalTaskRequest{TaskId: one.config.GetId(), Signal: name})
		return err
	}
	if err := signal("SIGSTOP"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	paused := len(one.console.String())
	time.Sleep(600 * time.Millisecond)
	if now := len(one.console.String()); now != paused {
		t.Errorf("a paused machine wrote %d bytes", now-paused)
	}
	if err := signal("SIGCONT"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the machine goes on", func() bool { return len(one.console.String()) > paused })
	if err := signal("SIGWINCH"); status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(status.Convert(err).Message(), "SIGTERM") {
		t.Errorf("a signal without a meaning: %v, expected INVALID_ARGUMENT with the list of those that have one", err)
	}
	if err := signal("SIGUSR1"); status.Code(err) != codes.Unimplemented {
		t.Errorf("a signal for the agent in the guest: %v, expected UNIMPLEMENTED", err)
	}
	if len(done) > 0 {
		t.Fatalf("the task ended: %v", <-done)
	}
	// `nomad alloc signal` without -s.
	if err := signal("SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if answer := h.ended(done); answer.GetResult().GetExitCode() == 0 && answer.GetResult().GetSignal() == 0 {
		t.Errorf("a killed machine ended well: %v", answer)
	}
}

func TestDeathOfTheVmmIsItsSignal(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	h.start(one)
	done := h.wait(one)
	if err := syscall.Kill(h.pid(one), syscall.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	if answer := h.ended(done); answer.GetResult().GetSignal() != int32(syscall.SIGSEGV) {
		t.Errorf("WaitTask: %v, expected signal 11", answer)
	}
}

func TestStatsHoldWhatTheClientReads(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	h.start(one)
	ctx, _ := h.streaming()
	stream, err := h.driver.TaskStats(ctx, &driverpb.TaskStatsRequest{
		TaskId: one.config.GetId(), CollectionInterval: durationpb.New(200 * time.Millisecond),
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 3 {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		checkStats(t, answer.GetStats())
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 4*time.Second {
		t.Errorf("three samples with an interval of 0.2 s took %v", took)
	}
	h.stop(one, 10*time.Second)
	mustStayOpen(t, received(stream), "TaskStats of an ended task")
}

func checkStats(t *testing.T, stats *driverpb.TaskStats) {
	t.Helper()
	if stats.GetTimestamp() == nil || stats.GetAggResourceUsage() == nil {
		t.Fatalf("the client panics on these stats or drops them: %v", stats)
	}
	checkUsage(t, "the task", stats.GetAggResourceUsage())
	if stats.GetAggResourceUsage().GetMemory().GetRss() == 0 {
		t.Error("the task has no memory")
	}
	for name, usage := range stats.GetResourceUsageByPid() {
		if usage == nil {
			t.Fatalf("the client panics on an empty usage of %s", name)
		}
		checkUsage(t, name, usage)
	}
}

func checkUsage(t *testing.T, name string, usage *driverpb.TaskResourceUsage) {
	t.Helper()
	cpu, memory := usage.GetCpu(), usage.GetMemory()
	if cpu == nil || memory == nil {
		t.Fatalf("usage of %s: %v", name, usage)
	}
	for _, value := range []float64{cpu.GetPercent(), cpu.GetSystemMode(), cpu.GetUserMode(), cpu.GetTotalTicks()} {
		if math.IsNaN(value) || math.IsInf(value, 0) || value < 0 {
			t.Errorf("CPU of %s: %v", name, cpu)
		}
	}
	// A vCPU has no memory of its own, and what the guest was given is no resident set.
	resident := !strings.HasPrefix(name, "vcpu") && name != "guest"
	if !slices.Contains(cpu.GetMeasuredFields(), driverpb.CPUUsage_PERCENT) ||
		slices.Contains(memory.GetMeasuredFields(), driverpb.MemoryUsage_RSS) != resident {
		t.Errorf("%s: nothing is shown of what is not in measured_fields: %v", name, usage)
	}
}
