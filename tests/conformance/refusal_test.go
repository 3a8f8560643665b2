package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	driverpb "chv.invalid/proto/driver"
	recoverableerrorpb "chv.invalid/proto/recoverable_error"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// recoverable is what makes Nomad's restart policy apply.
func recoverable(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if found, ok := detail.(*recoverableerrorpb.RecoverableError); ok && found.GetRecoverable() {
			return true
		}
	}
	return false
}

func TestJobThatCanNeverRunIsNotTriedAgain(t *testing.T) {
	h := serving(t)
	for name, body := range map[string]map[string]any{
		"two complaints": {"kernel": "local/vmlinuz", "vcpus": 0, "on_panic": "dance"},
		"a fraction":     {"kernel": "local/vmlinuz", "vcpus": 1.1},
		"a large number": {"kernel": "local/vmlinuz", "vcpus": 9007199254740993},
		"outside":        {"kernel": "/etc/passwd"},
		"absent":         {"kernel": "local/not-there"},
		"nobody comes":   {"kernel": "local/vmlinuz", "wait_for": "agent", "agent": false},
	} {
		one := h.prepareWith(strings.ReplaceAll(name, " ", "-"), body)
		_, err := h.driver.StartTask(h.context(), &driverpb.StartTaskRequest{Task: one.config})
		if status.Code(err) != codes.InvalidArgument || recoverable(err) {
			t.Errorf("%s: %v, recoverable %v; expected INVALID_ARGUMENT without the detail", name, err, recoverable(err))
		}
		text := status.Convert(err).Message()
		for key, value := range body {
			if key != "kernel" || len(body) == 1 {
				if !strings.Contains(text, key) || (value != true && value != false && !strings.Contains(text, fmt.Sprint(value))) {
					t.Errorf("%s: key %s with value %v is not in: %s", name, key, value, text)
				}
			}
		}
	}
}

// A VMM that dies at its start may live the next time.
func TestLaunchThatFailsMayBeTriedAgain(t *testing.T) {
	script := filepath.Join(testDir(t), "qemu")
	text := "#!/bin/sh\n[ \"$1\" != --version ] || { echo QEMU emulator version 8.2.2; exit 0; }\necho no such luck >&2\nexit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	h := launch(t)
	block := fakeBlock(t)
	block["hypervisor"] = "qemu"
	block["qemu"] = map[string]any{"binary": script, "accel": "tcg"}
	h.configure(block)
	one := h.prepare("web", "tick")
	_, err := h.driver.StartTask(h.context(), &driverpb.StartTaskRequest{Task: one.config})
	if code := status.Code(err); code == codes.OK || code == codes.Unavailable || code == codes.Canceled {
		t.Fatalf("StartTask: %v", err)
	}
	if !recoverable(err) {
		t.Errorf("without the detail Nomad does not try again: %v", err)
	}
	if !strings.Contains(status.Convert(err).Message(), "no such luck") {
		t.Errorf("the VMM's own words are not in: %v", err)
	}
	if err := h.destroy(one); err != nil {
		t.Errorf("DestroyTask of a task that never ran: %v", err)
	}
}

func TestUnknownTasks(t *testing.T) {
	h := serving(t)
	id := "5f3c1e0a-0000-4000-8000-00000000dead/web/0a1b2c3d"
	if _, err := h.driver.StopTask(h.context(), &driverpb.StopTaskRequest{TaskId: id}); err != nil {
		t.Errorf("StopTask: %v; Nomad repeats it for minutes", err)
	}
	if _, err := h.driver.DestroyTask(h.context(), &driverpb.DestroyTaskRequest{TaskId: id, Force: true}); err != nil {
		t.Errorf("DestroyTask: %v", err)
	}
	_, wait := h.driver.WaitTask(h.context(), &driverpb.WaitTaskRequest{TaskId: id})
	_, inspect := h.driver.InspectTask(h.context(), &driverpb.InspectTaskRequest{TaskId: id})
	_, signal := h.driver.SignalTask(h.context(), &driverpb.SignalTaskRequest{TaskId: id, Signal: "SIGTERM"})
	for name, err := range map[string]error{"WaitTask": wait, "InspectTask": inspect, "SignalTask": signal} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v, expected NOT_FOUND", name, err)
		}
	}
}

func TestWhatIsNotThereSaysSo(t *testing.T) {
	h := serving(t)
	one := h.prepare("web", "tick")
	h.start(one)
	_, exec := h.driver.ExecTask(h.context(), &driverpb.ExecTaskRequest{
		TaskId: one.config.GetId(), Command: []string{"true"}, Timeout: durationpb.New(time.Second),
	})
	stream, err := h.driver.ExecTaskStreaming(h.context())
	if err != nil {
		t.Fatal(err)
	}
	setup := &driverpb.ExecTaskStreamingRequest_Setup{TaskId: one.config.GetId(), Command: []string{"true"}}
	_ = stream.Send(&driverpb.ExecTaskStreamingRequest{Setup: setup})
	_, streaming := stream.Recv()
	for name, err := range map[string]error{"ExecTask": exec, "ExecTaskStreaming": streaming} {
		if status.Code(err) != codes.Unimplemented || !strings.Contains(status.Convert(err).Message(), "the guest agent does not answer") {
			t.Errorf("%s: %v, expected UNIMPLEMENTED and a text", name, err)
		}
	}
	_, create := h.driver.CreateNetwork(h.context(), &driverpb.CreateNetworkRequest{AllocId: "a"})
	_, destroy := h.driver.DestroyNetwork(h.context(), &driverpb.DestroyNetworkRequest{AllocId: "a"})
	for name, err := range map[string]error{"CreateNetwork": create, "DestroyNetwork": destroy} {
		if status.Code(err) != codes.Unimplemented || status.Convert(err).Message() == "" {
			t.Errorf("%s: %v, expected UNIMPLEMENTED", name, err)
		}
	}
}

// A restarted agent asks for everything at once: the library's own limits would refuse what waits.
func TestManyCallsAtOnce(t *testing.T) {
	h := serving(t)
	const calls = 3000
	failed := make(chan error, calls)
	for range calls {
		go func() {
			_, err := h.driver.InspectTask(
				h.context(), &driverpb.InspectTaskRequest{TaskId: "a/b/00000000"}, grpc.WaitForReady(true))
			failed <- err
		}()
	}
	for range calls {
		if err := <-failed; status.Code(err) != codes.NotFound {
			t.Fatalf("InspectTask: %v, expected NOT_FOUND", err)
		}
	}
}
