package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chv.invalid/hclspec"
	driverpb "chv.invalid/proto/driver"
	"google.golang.org/protobuf/types/known/durationpb"
)

// notSet is how "no time" is sent: the first moment of year 1.
const notSet = -62135596800

// task is what the agent prepares for one task, on a machine of the fake hypervisor.
type task struct {
	config  *driverpb.TaskConfig
	console *buffer
	stderr  *buffer
}

// prepare makes the alloc's directory and FIFOs with readers. Words are what the guest is to do (tests/guest/README.md).
func (h *host) prepare(name, words string) *task {
	h.t.Helper()
	return h.prepareWith(name, map[string]any{"kernel": "local/vmlinuz", "cmdline": "console=ttyS0 " + words})
}

func (h *host) prepareWith(name string, body map[string]any) *task {
	h.t.Helper()
	// An id is unique in the world: the host's cgroups are named by it, and another test run may be on this host.
	digest := sha256.Sum256([]byte(testDir(h.t) + name))
	allocID := fmt.Sprintf("5f3c1e0a-0000-4000-8000-%x", digest[:6])
	allocDir := filepath.Join(testDir(h.t), "alloc", allocID)
	logs := filepath.Join(allocDir, "alloc", "logs")
	for _, dir := range []string{logs, filepath.Join(allocDir, name, "local"), filepath.Join(allocDir, name, "secrets")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(allocDir, name, "local/vmlinuz"), []byte("\x7fELF a kernel, as far as anybody looks"+strings.Repeat(" ", 4096)), 0o644); err != nil {
		h.t.Fatal(err)
	}
	one := &task{console: &buffer{}, stderr: &buffer{}}
	one.config = &driverpb.TaskConfig{
		Id:                  allocID + "/" + name + "/0a1b2c3d",
		Name:                name,
		AllocId:             allocID,
		AllocDir:            allocDir,
		JobName:             "job",
		JobId:               "job",
		TaskGroupName:       "group",
		Namespace:           "default",
		NodeName:            "node",
		StdoutPath:          h.fifo(filepath.Join(logs, "."+name+".stdout.fifo"), one.console),
		StderrPath:          h.fifo(filepath.Join(logs, "."+name+".stderr.fifo"), one.stderr),
		Env:                 map[string]string{"NOMAD_TASK_NAME": name},
		MsgpackDriverConfig: h.packedTask(body),
		Resources: &driverpb.Resources{
			AllocatedResources: &driverpb.AllocatedTaskResources{
				Cpu:    &driverpb.AllocatedCpuResources{CpuShares: 100},
				Memory: &driverpb.AllocatedMemoryResources{MemoryMb: 64},
			},
			LinuxResources: &driverpb.LinuxResources{CpuShares: 100, MemoryLimitBytes: 64 << 20},
		},
	}
	return one
}

func (h *host) packedTask(body map[string]any) []byte {
	h.t.Helper()
	schema, err := h.driver.TaskConfigSchema(h.context(), &driverpb.TaskConfigSchemaRequest{})
	if err != nil {
		h.t.Fatalf("TaskConfigSchema: %v", err)
	}
	packed, err := hclspec.Encode(schema.GetSpec(), asJSON(h.t, body), nil)
	if err != nil {
		h.t.Fatalf("config block: %v", err)
	}
	return packed
}

// fifo makes one and reads it for as long as the test lives, as the agent's log collector does.
func (h *host) fifo(path string, into *buffer) string {
	h.t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		h.t.Fatal(err)
	}
	// Read and write, so that opening does not wait for a writer.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = file.Close() })
	go func() {
		chunk := make([]byte, 64<<10)
		for {
			count, err := file.Read(chunk)
			if err != nil {
				return
			}
			_, _ = into.Write(chunk[:count])
		}
	}()
	return path
}

// start starts the task and sees to it that nothing is left of it.
func (h *host) start(one *task) *driverpb.TaskHandle {
	h.t.Helper()
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("console of %s:\n%s\nits stderr:\n%s", one.config.GetName(), one.console, one.stderr)
			showFiles(h.t)
		}
		_ = h.destroy(one)
	})
	answer, err := h.driver.StartTask(h.context(), &driverpb.StartTaskRequest{Task: one.config})
	if err != nil {
		h.t.Fatalf("StartTask: %v", err)
	}
	return answer.GetHandle()
}

// showFiles logs what driver and keeper have on disk: journal, records, logs.
func showFiles(t *testing.T) {
	for _, top := range []string{"run", "data"} {
		_ = filepath.WalkDir(filepath.Join(testDir(t), top), func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil
			}
			if text, err := os.ReadFile(path); err == nil && len(text) < 64<<10 {
				t.Logf("%s:\n%s", path, text)
			}
			return nil
		})
	}
}

func (h *host) destroy(one *task) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := h.driver.DestroyTask(ctx, &driverpb.DestroyTaskRequest{TaskId: one.config.GetId(), Force: true})
	return err
}

func (h *host) inspect(one *task) *driverpb.InspectTaskResponse {
	h.t.Helper()
	answer, err := h.driver.InspectTask(h.context(), &driverpb.InspectTaskRequest{TaskId: one.config.GetId()})
	if err != nil {
		h.t.Fatalf("InspectTask: %v", err)
	}
	return answer
}

// pid is that of the VMM.
func (h *host) pid(one *task) int {
	h.t.Helper()
	pid, err := strconv.Atoi(h.inspect(one).GetDriver().GetAttributes()["pid"])
	if err != nil || !alive(pid) {
		h.t.Fatalf("no living pid among the driver's attributes: %v", err)
	}
	return pid
}

type waited struct {
	answer *driverpb.WaitTaskResponse
	err    error
}

func (h *host) wait(one *task) <-chan waited {
	ctx, _ := h.streaming()
	done := make(chan waited, 1)
	go func() {
		answer, err := h.driver.WaitTask(ctx, &driverpb.WaitTaskRequest{TaskId: one.config.GetId()})
		done <- waited{answer, err}
	}()
	return done
}

func (h *host) ended(done <-chan waited) *driverpb.WaitTaskResponse {
	h.t.Helper()
	select {
	case got := <-done:
		if got.err != nil || got.answer.GetResult() == nil {
			h.t.Fatalf("WaitTask: %v %v", got.answer, got.err)
		}
		return got.answer
	case <-time.After(20 * time.Second):
		h.t.Fatal("WaitTask does not answer")
		return nil
	}
}

func (h *host) stop(one *task, timeout time.Duration) {
	h.t.Helper()
	request := &driverpb.StopTaskRequest{TaskId: one.config.GetId(), Timeout: durationpb.New(timeout)}
	if _, err := h.driver.StopTask(h.context(), request); err != nil {
		h.t.Fatalf("StopTask: %v", err)
	}
}

func (h *host) events() <-chan *driverpb.DriverTaskEvent {
	h.t.Helper()
	ctx, _ := h.streaming()
	stream, err := h.driver.TaskEvents(ctx, &driverpb.TaskEventsRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	into := make(chan *driverpb.DriverTaskEvent, 100)
	go func() {
		for {
			event, err := stream.Recv()
			if err != nil {
				return
			}
			into <- event
		}
	}()
	return into
}

func (one *task) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, 10*time.Second, "the console says "+text, func() bool {
		return strings.Contains(one.console.String(), text)
	})
}

// serving is a launched and configured plugin with nothing to do.
func serving(t *testing.T) *host {
	h := launch(t)
	h.configure(fakeBlock(t))
	return h
}

// vmms counts the fake VMMs whose console is in this test's directory.
func vmms(t *testing.T) int {
	t.Helper()
	count := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		argv, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		cwd, _ := os.Readlink(filepath.Join("/proc", entry.Name(), "fd/1"))
		if bytes.Contains(argv, []byte("fake_vmm")) && strings.HasPrefix(cwd, testDir(t)) {
			count++
		}
	}
	return count
}
