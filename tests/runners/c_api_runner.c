/* Loads a SavedModel through TensorFlow's C API, as a server does, and answers requests until they end. No Python.
 *
 *   c_api_runner DIRECTORY < requests > answers
 *
 * Little-endian. A text is u32 length, bytes. A tensor is u32 dtype, u32 rank, i64 per axis, then its values: for
 * strings u64 length, bytes each; for others u64 size in bytes, bytes.
 *   request: u32 inputs, each (text operation, u32 output, tensor); u32 outputs, each (text operation, u32 output).
 *   answer:  u32 status code, text message, and where the code is 0 the outputs' tensors.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

#define MOST 16 /* inputs or outputs of a signature, axes of a tensor */

static void fail(const char *what, const char *why) {
  fprintf(stderr, "c_api_runner: %s: %s\n", what, why);
  exit(2);
}

static void get(void *to, size_t size, FILE *file) {
  if (size && fread(to, 1, size, file) != size) fail("requests", "the file ends too early");
}

static void put(const void *from, size_t size, FILE *file) {
  if (size && fwrite(from, 1, size, file) != size) fail("answers", "cannot be written");
}

static uint32_t get_u32(FILE *file) { uint32_t value; get(&value, sizeof value, file); return value; }
static uint64_t get_u64(FILE *file) { uint64_t value; get(&value, sizeof value, file); return value; }
static void put_u32(uint32_t value, FILE *file) { put(&value, sizeof value, file); }
static void put_u64(uint64_t value, FILE *file) { put(&value, sizeof value, file); }

static TF_Output get_operation(TF_Graph *graph, FILE *file) {
  char name[512];
  uint32_t length = get_u32(file);
  if (length >= sizeof name) fail("requests", "an operation's name is too long");
  get(name, length, file);
  name[length] = 0;
  TF_Output output = {TF_GraphOperationByName(graph, name), (int)get_u32(file)};
  if (!output.oper) fail(name, "is not in the graph");
  return output;
}

static TF_Tensor *get_tensor(FILE *file) {
  TF_DataType dtype = (TF_DataType)get_u32(file);
  int64_t dims[MOST], count = 1;
  uint32_t rank = get_u32(file);
  if (rank > MOST) fail("requests", "a rank is too high");
  for (uint32_t i = 0; i < rank; ++i) count *= dims[i] = (int64_t)get_u64(file);
  if (dtype != TF_STRING) {
    uint64_t size = get_u64(file);
    TF_Tensor *tensor = TF_AllocateTensor(dtype, dims, (int)rank, size);
    get(TF_TensorData(tensor), size, file);
    return tensor;
  }
  TF_Tensor *tensor = TF_AllocateTensor(dtype, dims, (int)rank, sizeof(TF_TString) * (size_t)count);
  TF_TString *strings = TF_TensorData(tensor);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t length = get_u64(file);
    char *bytes = malloc(length + 1);
    get(bytes, length, file);
    TF_StringInit(&strings[i]);
    TF_StringCopy(&strings[i], bytes, length);
    free(bytes);
  }
  return tensor;
}

static void put_tensor(TF_Tensor *tensor, FILE *file) {
  put_u32(TF_TensorType(tensor), file);
  put_u32((uint32_t)TF_NumDims(tensor), file);
  for (int i = 0; i < TF_NumDims(tensor); ++i) put_u64((uint64_t)TF_Dim(tensor, i), file);
  if (TF_TensorType(tensor) != TF_STRING) {
    put_u64(TF_TensorByteSize(tensor), file);
    put(TF_TensorData(tensor), TF_TensorByteSize(tensor), file);
    return;
  }
  const TF_TString *strings = TF_TensorData(tensor);
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); ++i) {
    put_u64(TF_StringGetSize(&strings[i]), file);
    put(TF_StringGetDataPointer(&strings[i]), TF_StringGetSize(&strings[i]), file);
  }
}

int main(int argc, char **argv) {
  if (argc != 2) fail("usage", "c_api_runner DIRECTORY < requests > answers");
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  if (TF_GetCode(status) != TF_OK) fail(argv[1], TF_Message(status));

  uint32_t feeds;
  while (fread(&feeds, sizeof feeds, 1, stdin) == 1) {
    TF_Output fed[MOST], fetched[MOST];
    TF_Tensor *inputs[MOST], *outputs[MOST] = {0};
    if (feeds > MOST) fail("requests", "too many inputs");
    for (uint32_t i = 0; i < feeds; ++i) {
      fed[i] = get_operation(graph, stdin);
      inputs[i] = get_tensor(stdin);
    }
    uint32_t fetches = get_u32(stdin);
    if (fetches > MOST) fail("requests", "too many outputs");
    for (uint32_t i = 0; i < fetches; ++i) fetched[i] = get_operation(graph, stdin);
    TF_SessionRun(session, NULL, fed, inputs, (int)feeds, fetched, outputs, (int)fetches, NULL, 0, NULL, status);
    put_u32((uint32_t)TF_GetCode(status), stdout);
    put_u32((uint32_t)strlen(TF_Message(status)), stdout);
    put(TF_Message(status), strlen(TF_Message(status)), stdout);
    for (uint32_t i = 0; i < feeds; ++i) TF_DeleteTensor(inputs[i]);
    for (uint32_t i = 0; i < fetches && TF_GetCode(status) == TF_OK; ++i) {
      put_tensor(outputs[i], stdout);
      TF_DeleteTensor(outputs[i]);
    }
    if (fflush(stdout)) fail("answers", "cannot be written");
  }
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
